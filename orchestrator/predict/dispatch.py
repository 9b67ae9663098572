"""Run a ``ttmoe predict`` request with the code for its input: texts, standard input, files, or files on Ray."""

from __future__ import annotations

import sys

from rich.console import Console

from orchestrator.predict.request import PredictRequest


def run_request(request: PredictRequest) -> None:
    """Answer a request; print the answers, or write them to ``request.out``.

    Raises:
        InputError: If the options do not go together, or the input cannot be answered.
        WorkFailedError: If a process on Ray fails.
    """
    request.check()
    messages = Console(stderr=True, emoji=False)
    if request.on_ray:
        from orchestrator.predict.ray_data import predict_on_ray

        predict_on_ray(request, messages)
    elif request.file is not None:
        from orchestrator.predict.files import predict_files

        predict_files(request, messages)
    elif request.has_texts:
        from orchestrator.predict.texts import predict_texts

        predict_texts(request, Console(emoji=False), messages)
    else:
        from orchestrator.predict.texts import predict_stream

        predict_stream(request, sys.stdin, messages)
