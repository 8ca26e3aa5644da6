"use strict";
const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), SIDE = canvas.width;
const strokes = []; // Each is a list of points [x, y], in pixels of the canvas.
const questions = new Map();
let pause = null;

/** Drops what was asked for this output and is not answered yet; the signal of the next question. */
function begin(output) {
  questions.get(output)?.abort();
  questions.set(output, new AbortController());
  return questions.get(output).signal;
}

function say(output, text, state = "") {
  output.textContent = text;
  output.className = state;
}

function headers(model) {
  const found = {};
  if ($("key").value) found["X-API-Key"] = $("key").value;
  if (model) found["X-Model"] = model;
  return found;
}

/** Asks the application and returns its answer; undefined after an error, which the output shows. */
async function ask(path, options, output, signal) {
  try {
    const response = await fetch(path, { ...options, signal });
    const answer = await response.json().catch(() => ({ error: `HTTP status ${response.status}` }));
    if (signal.aborted) return undefined;
    if (response.ok) return answer;
    const details = (answer.details ?? []).map((one) => `${one.loc.slice(1).join(".")}: ${one.msg}`);
    say(output, [answer.error, ...details].join("\n"), "error");
  } catch (error) {
    if (!signal.aborted) say(output, `No answer: ${error.message}`, "error");
  }
  return undefined;
}

function show(output, text, answer) {
  say(output, `${text}\n${answer.model} ${answer.version}, ${answer.latency_ms.toFixed(1)} ms`, "done");
}

function paint(target, width, place = (point) => point) {
  const pen = target.getContext("2d");
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, SIDE, SIDE);
  pen.strokeStyle = "#fff";
  pen.lineWidth = width;
  pen.lineCap = pen.lineJoin = "round";
  for (const points of strokes) {
    pen.beginPath();
    // The last point twice, since a line from a point to itself is a dot, and a single point nothing.
    for (const point of [...points, points.at(-1)]) pen.lineTo(...place(point));
    pen.stroke();
  }
}

/** The drawing as large, and its lines as thick, as the digits that the models were trained on. */
function picture() {
  const width = 0.18 * SIDE, made = document.createElement("canvas");
  made.width = made.height = SIDE;
  const ranges = [0, 1].map((axis) => {
    const values = strokes.flat().map((point) => point[axis]);
    return [Math.min(...values), Math.max(...values)];
  });
  const scale = (SIDE - width) / Math.max(1, ...ranges.map(([low, high]) => high - low));
  const middle = ranges.map(([low, high]) => (low + high) / 2);
  paint(made, width, (point) => point.map((x, axis) => SIDE / 2 + (x - middle[axis]) * scale));
  return new Promise((done) => made.toBlob(done));
}

function clear() {
  clearTimeout(pause);
  begin($("digit-answer"));
  strokes.length = 0;
  paint(canvas, 0);
  $("bars").replaceChildren();
  say($("digit-answer"), "Draw with the mouse or a finger.");
}

function bar(probability, digit) {
  const column = document.createElement("div"), filled = document.createElement("i");
  filled.style.height = `${probability * 100}%`;
  column.append(filled, digit);
  return column;
}

async function predictDigit() {
  if (!strokes.length) return;
  const output = $("digit-answer"), signal = begin(output);
  const form = new FormData();
  form.append("file", await picture(), "digit.png");
  const options = { method: "POST", body: form, headers: headers($("digit-model").value) };
  const answer = await ask("v1/digits/image", options, output, signal);
  if (signal.aborted) return;
  $("bars").replaceChildren(...(answer?.probabilities ?? []).map(bar));
  if (!answer) return;
  const best = Math.max(...answer.probabilities);
  show(output, `${answer.label} (${(best * 100).toFixed(0)} %)`, answer);
}

async function predictTrip() {
  const output = $("trip-answer"), signal = begin(output);
  const fields = Object.fromEntries(new FormData($("trip")));
  const body = { pickup_at: fields.pickup_at };
  for (const name of ["distance_miles", "pickup_zone", "dropoff_zone"]) body[name] = Number(fields[name]);
  const options = {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "Content-Type": "application/json", ...headers($("trip-model").value) },
  };
  const answer = await ask("v1/trips", options, output, signal);
  if (answer) show(output, `${answer.minutes.toFixed(1)} minutes`, answer);
}

async function listModels() {
  const output = $("key-answer"), signal = begin(output);
  const models = await ask("v1/models", { headers: headers() }, output, signal);
  if (!models) return;
  say(output, "");
  for (const [id, kind] of [["digit-model", "digits"], ["trip-model", "trips"]]) {
    const names = models.filter((model) => model.kind === kind).map((model) => model.name);
    $(id).replaceChildren(...names.map((name) => new Option(name, name)));
  }
}

function draw(event) {
  if (!event.isPrimary || !canvas.hasPointerCapture(event.pointerId)) return;
  const box = canvas.getBoundingClientRect(), scale = SIDE / box.width;
  strokes.at(-1)?.push([(event.clientX - box.left) * scale, (event.clientY - box.top) * scale]);
  paint(canvas, 28);
}

canvas.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button !== 0) return;
  clearTimeout(pause);
  canvas.setPointerCapture(event.pointerId);
  strokes.push([]);
  draw(event);
});
canvas.addEventListener("pointermove", draw);
canvas.addEventListener("lostpointercapture", () => {
  pause = setTimeout(predictDigit, 150); // The next stroke may follow.
});
$("clear").addEventListener("click", clear);
$("digit-model").addEventListener("change", predictDigit);
$("trip").addEventListener("submit", (event) => {
  event.preventDefault();
  predictTrip();
});
$("key").addEventListener("change", listModels);
clear();
listModels();
