"""A loop of a toy block written out in torch, float64, by the definitions: a weighted sum of states
where cells halt, `detach` where gradients end."""

import numpy as np
import torch


def tensors(tree):
    """The same tree as float64 tensors that want gradients."""
    if isinstance(tree, dict):
        return {name: tensors(value) for name, value in tree.items()}
    return torch.tensor(np.asarray(tree, np.float64), requires_grad=True)


def gradients(tree):
    """Of every tensor; 0 where it had no part."""
    if isinstance(tree, dict):
        return {name: gradients(value) for name, value in tree.items()}
    return np.zeros(tree.shape) if tree.grad is None else tree.grad.numpy()


def toy_block(layer, streams):
    """`tests.model.test_looped.ToyBlock`."""
    mean = 2 * streams["text"].mean(1, keepdim=True) + streams["video"].mean(1, keepdim=True)
    return {
        n: x + torch.tanh((x + mean) @ layer["kernel"] + layer["bias"]) for n, x in streams.items()
    }


def normed(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)


def step_size(gate, row, x, r):
    a = row["gate"]
    if "token" in row:
        a = a + (normed(x) @ row["token"])[..., None]
    return {"identity": (r == 0) + a, "sigmoid": torch.sigmoid(a), "off": torch.tensor(1.0)}[gate]


def detached(tree):
    return {name: value.detach() for name, value in tree.items()}


def loop(params, streams, *, gate, rounds, backprop_rounds=0, threshold=None):
    """(what the loop returns, what would be returned after each round, running by round).

    Args:
        params: {"layer": of the block, "loop": rows}; which rows there are says what runs.
        streams: before the loop.
        gate: as in the project.
        rounds: that run; rows after the last repeat it.
        backprop_rounds: 0 = all.
        threshold: stopped mass from which a cell stops for good.
    """
    rows, trained = params["loop"], len(params["loop"]["gate"])
    begins = rounds - backprop_rounds if backprop_rounds else 0
    state, states, weights, running = streams, [], [], []
    left = {n: torch.ones_like(x[..., :1]) for n, x in streams.items()}
    exits = []
    for r in range(rounds):
        if r == begins:
            entered = {n: x - x.detach() for n, x in streams.items()}
            state = {n: x.detach() + entered[n] for n, x in state.items()}
            states = [{n: x.detach() + entered[n] for n, x in s.items()} for s in states]
            weights, left = [detached(w) for w in weights], detached(left)
            exits = [{n: x.detach() + entered[n] for n, x in s.items()} for s in exits]
            running = [detached(x) for x in running]
        row = {n: x[min(r, trained - 1)] for n, x in rows.items()}
        moved = {n: x + row[n] for n, x in state.items()}
        if "reinject" in row:
            moved = {n: x + row["reinject"] * streams[n] for n, x in moved.items()}
        out = toy_block(params["layer"], moved)
        sizes = {n: step_size(gate, row, x, r) for n, x in state.items()}
        new = {n: x + sizes[n] * (out[n] - x) for n, x in state.items()}
        if threshold is not None:
            new = {n: torch.where(left[n] > 0, x, state[n]) for n, x in new.items()}
        state = new
        states.append(state)
        hard = {n: (x > 0).double() for n, x in left.items()}
        running.append(hard if threshold is not None else left)
        if "halt" not in rows:
            exits.append(state)
            continue
        # What the loop returns if this round is the last: all that is left stops here.
        exits.append(mean(states, [*weights, left]))
        chance = {
            n: torch.sigmoid(row["halt"] + (normed(x) @ row["halt_token"])[..., None])
            for n, x in state.items()
        }
        if threshold is not None:
            # The rest of the mass stops at once, where enough has.
            chance = {
                n: torch.where(1 - left[n] * (1 - x) >= threshold, 1.0, x)
                for n, x in chance.items()
            }
        weights.append({n: left[n] * x for n, x in chance.items()})
        left = {n: left[n] * (1 - x) for n, x in chance.items()}
    return exits[-1], exits, running


def mean(states, weights):
    """sum_r w_r h_r."""
    return {n: sum(w[n] * s[n] for w, s in zip(weights, states, strict=True)) for n in states[0]}
