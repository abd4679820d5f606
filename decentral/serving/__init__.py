"""A program's committed states at work: text and images from the mesh, while it trains and after.

    prompt ─▶ router ─▶ path ─┬─ local:  the path's parts, fetched and put together here ─▶ bytes
                              └─ remote: a peer that keeps the path, W bytes per call    ─▶ bytes

    cache.py      what was used last, up to so many bytes; made once, whoever wants it
    parts.py      tensors of committed states: held here, fetched before, or fetched now
    keepers.py    who keeps a cell, and asking one after the other
    messages.py   what is asked for, as bytes; checked before anything is made of it
    paths.py      DiPaCo: a path's model from its parts, and the router
    text.py       bytes from one model: a pure function of model, context, place and seed
    writer.py     DiPaCo: a prompt goes on, routed anew every W bytes
    experts.py    diffusion: an expert's network from its state
    sampler.py    diffusion: images through experts, local or remote
    offer.py      a peer's side of it

Local and remote come to the same bits on equal hardware. Nothing here draws from torch's own random
numbers, or changes them: it runs beside training, whose bits must not depend on it.
"""
