"""trio-gateway: keys, limits, budgets and an exact ledger in front of Ollama.

Floors, top to bottom; imports only ever point down:

    cli         the command line
    roof        processes (quickstart, installation, supervisor, kept, keeping, worker, bootstrap,
                announcing), applications (asgi, admin_asgi) and their wiring (office, oidc,
                gateway, gating, batching, sampling)
    web         HTTP in, HTTP out; the only floor that imports quart
    pipeline    one call, from admission to settlement
    services    one noun each; those with tasks of their own never import each other
    settings, migrate, embedded
    clients     the outside world, foreign errors renamed at the door
    dialects    wire formats, pure
    core        the words and rules; no I/O, standard library only; beside it datadir, listening,
                logs and ollama_probe, which know nothing else

`simulator` stands beside them: a simulated Ollama that imports none of the above.
"""

__version__ = "0.1.0"
