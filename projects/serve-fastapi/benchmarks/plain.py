"""The same model behind plain FastAPI on uvicorn: `plain.py --bundle=… --port=8001`.

One call of the model for each request, as most services begin; with `--batch` a queue and a task
that gathers what has come, as the next step would be.

Source: https://fastapi.tiangolo.com/tutorial/first-steps/
"""

import argparse
import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException
from ray_shared.bundle import read_bundle
from serve_fastapi import models, schemas

MAX_ROWS = 64


def make() -> FastAPI:
    """The application; settings come from the environment, since uvicorn's workers import it."""
    app = FastAPI()
    bundle_dir, batch = Path(os.environ["BUNDLE"]), os.environ.get("BATCH") == "1"
    bundle = read_bundle(bundle_dir)
    infer = models.load(str(bundle_dir), "predict", 1)
    queue: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue()

    async def gather() -> None:
        while True:
            taken = [await queue.get()]
            while len(taken) < MAX_ROWS and not queue.empty():
                taken.append(queue.get_nowait())
            rows = np.array([image for image, _ in taken], np.float32).reshape(len(taken), -1)
            found, _ = await asyncio.to_thread(infer, rows)
            for (_, future), row in zip(taken, found, strict=True):
                future.set_result(row)

    @app.on_event("startup")
    async def begin() -> None:
        app.state.task = asyncio.create_task(gather())

    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/digits")
    async def predict(body: schemas.DigitRequest) -> dict[str, Any]:
        if len(body.image) != 8 or any(len(row) != 8 for row in body.image):
            raise HTTPException(422, "must be 8 rows of 8")
        if batch:
            future = asyncio.get_running_loop().create_future()
            queue.put_nowait((body.image, future))
            row = await future
        else:
            found, _ = infer(np.array([body.image], np.float32).reshape(1, -1))
            row = found[0]
        return {"label": bundle.classes[int(row.argmax())], "probabilities": row.tolist()}

    return app


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", action="store_true")
    args = parser.parse_args()
    os.environ["BUNDLE"] = args.bundle
    os.environ["BATCH"] = "1" if args.batch else "0"
    uvicorn.run(
        "plain:make",
        factory=True,
        host="127.0.0.1",
        port=args.port,
        workers=args.workers,
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
