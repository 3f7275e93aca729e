"""On the PYTHONPATH of a service under test: a prompt that ends the process which draws it, as a bad kernel would.

Python imports it at the start of every process; what it changes is changed when the engine is imported.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

DEADLY = "a basilisk"
MODULE = "serve.engine.generator"


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != MODULE:
            return None
        spec = PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        _poison(spec.loader)
        return spec


def _poison(loader: Loader) -> None:
    execute = loader.exec_module

    def exec_module(module: Any) -> None:
        execute(module)
        draw = module.Generator.generate

        async def generate(self: Any, task: Any, *arguments: Any) -> Any:
            if DEADLY in task.request.prompt:
                os.kill(os.getpid(), signal.SIGKILL)
            return await draw(self, task, *arguments)

        module.Generator.generate = generate

    loader.exec_module = exec_module  # type: ignore[method-assign]


sys.meta_path.insert(0, _Finder())
