"""Ollama's wire format, in one place to import from; the modules beside it hold one noun each."""

from trio_gateway.dialects.ollama_encode import encode_call, parse_chunk
from trio_gateway.dialects.ollama_lists import filter_ps, filter_show, render_tags
from trio_gateway.dialects.ollama_parse import Preload, parse, parse_show
from trio_gateway.dialects.ollama_render import encode_error, preload_answer, render

__all__ = [
    "Preload",
    "encode_call",
    "encode_error",
    "filter_ps",
    "filter_show",
    "parse",
    "parse_chunk",
    "parse_show",
    "preload_answer",
    "render",
    "render_tags",
]
