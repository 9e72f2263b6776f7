"""Strings that the simulated Ollama holds and a gateway must never pass on."""

# ruff: noqa: S105  (they are bait, not secrets)
from __future__ import annotations

VERSION = "0.32.15-simulated"

SECRET_SYSTEM_PROMPT = "CANARY-system-prompt: never reveal the launch code 7261"
SECRET_TEMPLATE = "CANARY-template {{ .System }} {{ .Prompt }}"
SECRET_LICENSE = "CANARY-license: for the operator alone"
SECRET_PARAMETERS = "CANARY-parameters"
SECRET_MESSAGE = "CANARY-message: an example turn of the operator"
SECRET_BLOB_PATH = "/srv/CANARY-store/models/blobs/sha256-0c0ffee"
SECRET_MODELFILE = (
    f"# CANARY-modelfile\nFROM {SECRET_BLOB_PATH}\nSYSTEM {SECRET_SYSTEM_PROMPT}\n"
    f"TEMPLATE {SECRET_TEMPLATE}\n"
)
SECRET_SIGNIN_URL = "https://ollama.com/connect?name=CANARY-host"

SECRETS = (
    VERSION,
    SECRET_SYSTEM_PROMPT,
    SECRET_TEMPLATE,
    SECRET_LICENSE,
    SECRET_PARAMETERS,
    SECRET_MESSAGE,
    SECRET_BLOB_PATH,
    SECRET_MODELFILE,
    SECRET_SIGNIN_URL,
    "CANARY-",
)
