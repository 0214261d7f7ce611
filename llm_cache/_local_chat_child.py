"""Serve one GGUF file on loopback until standard input ends.

The child process of `local_chat.LocalChatServer`, run as a script and never imported: it loads
nothing of `llm_cache`, so that it starts at once and holds the model alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any
from urllib.parse import urlsplit

import xllamacpp


def _serve(settings: dict[str, Any]) -> xllamacpp.Server:
    params = xllamacpp.CommonParams()
    params.model.path = settings["model_path"]
    params.n_ctx = settings["context_tokens"]
    params.n_parallel = settings["parallel"]
    params.cpuparams.n_threads = settings["threads"]
    params.cpuparams_batch.n_threads = settings["threads"]
    params.port = 0  # the system chooses a free one
    # llama.cpp renames such options now and then; a missing one keeps its default, and the parent
    # connects to 127.0.0.1 only.
    for name, value in {
        "hostname": "127.0.0.1",
        "hostnames": ["127.0.0.1"],
        "model_alias": {settings["model"]},
        "verbosity": 1,  # errors
        "ui": False,
        "endpoint_slots": False,
        "cors_origins": "",  # no web page may read from it
        # Every call costs what it costs the first time: nothing is kept from call to call, in
        # time or in memory, nor can it change an answer at temperature 0.
        "cache_prompt": False,
        "cache_ram_mib": 0,
        "cache_idle_slots": False,
    }.items():
        if hasattr(params, name):
            setattr(params, name, value)
    return xllamacpp.Server(params)


def _exit_with_parent() -> None:
    # The parent holds the other end and never writes: this returns when the parent closes it or
    # dies, however it dies. (`sys.stdin` has a lock that would be in the way of a failing start.)
    os.read(0, 1)
    os._exit(0)


def main() -> None:
    """Start, print the port on a line of its own, stay."""
    # Ctrl-C reaches the whole group; the parent decides when it is time to go.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ready = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what C++ code prints belongs to the log
    watch = threading.Thread(target=_exit_with_parent, daemon=True)
    watch.start()
    server = _serve(json.loads(sys.argv[1]))
    print(urlsplit(server.listening_address).port, file=ready, flush=True)
    watch.join()


if __name__ == "__main__":
    main()
