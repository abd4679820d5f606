"""Decentralized diffusion (McAllister et al. 2025, arXiv 2501.05450): experts in isolation.

                     ┌─▶ expert/0 ──┐            each learns the flow of its own cluster alone
    images ─▶ clusters ─▶ expert/1 ──┼─▶ u(x, t) = Σ p(k | x, t) u_k(x, t) ─▶ samples
                     ├─▶ …        ──┤
                     └─▶ router  ───┘            learns p(k | x, t) from noisy images

    images.py     Fashion-MNIST, digits, or procedural shapes; each with a digest
    space.py      what the flow lives in: whitened principal components, or pixels
    clusters.py   features → many fine centroids → K balanced clusters
    flow.py       x_t = (1 − t) x_0 + t ε, target ε − x_0: t = 1 is noise
    networks.py   a residual MLP for latents, and the router; dit.py: a DiT for pixels
    flat.py       a network in one vector: what a round's state is made of
    training.py   the inner steps of one round, of an expert and of the router
    program.py    the run: cells and what their rounds need
    routing.py    full, top-n, threshold, sticky: which experts a sample asks
    sampling.py   Euler and Heun through any experts, near or far
    ensemble.py   experts and router from committed states, in this process

During training nothing but the clusters, which all know, goes into an expert: no gradient,
pseudo-gradient or activation ever goes from one expert to another.
"""
