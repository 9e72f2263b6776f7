"""trio-gateway: keys, limits, budgets and an exact ledger in front of Ollama.

Floors, top to bottom; imports only ever point down:

    cli, quickstart, supervisor, worker, asgi, gateway   the roof: wiring and processes
    web         HTTP in, HTTP out; the only floor that imports quart
    pipeline    one call, from admission to settlement
    services    one noun each; services never import each other
    clients     the outside world, foreign errors renamed at the door
    dialects    wire formats, pure
    core        the words and rules; no I/O, standard library only

`simulator` stands beside them: a simulated Ollama that imports none of the above.
"""

__version__ = "0.1.0"
