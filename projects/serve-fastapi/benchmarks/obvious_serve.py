"""The same model on Ray Serve with its defaults: `obvious_serve.py --bundle=… --port=8002`.

As the guide to FastAPI with Ray Serve writes it: routes in a class, the model in its constructor.

Source: https://docs.ray.io/en/releases-2.60.0/serve/http-guide.html
"""

import argparse
import time
from typing import Any

import numpy as np
import ray
from fastapi import FastAPI, HTTPException
from ray import serve
from ray_shared.bundle import read_bundle
from serve_fastapi import models, schemas

app = FastAPI()


@serve.deployment(ray_actor_options={"num_cpus": 1})
@serve.ingress(app)
class Digits:
    def __init__(self, bundle: str):
        from pathlib import Path

        self.classes = read_bundle(Path(bundle)).classes
        self.infer = models.load(bundle, "predict", 1)

    @app.get("/healthz")
    async def alive(self) -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/digits")
    async def predict(self, body: schemas.DigitRequest) -> dict[str, Any]:
        if len(body.image) != 8 or any(len(row) != 8 for row in body.image):
            raise HTTPException(422, "must be 8 rows of 8")
        found, _ = self.infer(np.array([body.image], np.float32).reshape(1, -1))
        row = found[0]
        return {"label": self.classes[int(row.argmax())], "probabilities": row.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    ray.init(address="local")
    serve.start(http_options={"port": args.port})
    serve.run(Digits.bind(args.bundle))
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
