"""Which tokens stand for a batch: pairs of sequences, and for how many of the batch's pairs each of them counts."""

from dataclasses import dataclass

import numpy as np

from theory.architecture import Architecture


def representative_pairs(tokens: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """About `count` pairs of the batch's sequences int[count, 2, T + 1], as like each other as the batch's are.

    Every pair equally often where that many are asked for, else every sequence, in the draw of 64 in which the tokens
    of two sequences agree as often as in all pairs, and those of one as in all. A lone sequence is its own list.
    """
    sequences = len(tokens)
    if sequences == 1:
        return np.tile(tokens, (count, 1, 1))
    ring = [*range(sequences), *[-1] * (sequences % 2)]
    games = []
    for _ in range(len(ring) - 1):  # a tournament in rounds, in each of which every sequence plays once, or rests
        games += [g for g in zip(ring[: len(ring) // 2], reversed(ring), strict=False) if -1 not in g]
        ring.insert(1, ring.pop())
    pairs = np.array(games)
    if count >= len(pairs):
        return tokens[np.tile(pairs, (round(count / len(pairs)), 1))]
    frequency = np.stack([np.bincount(row, minlength=tokens.max() + 1) for row in tokens]).astype(float)
    like = frequency @ frequency.T
    one, two = np.trace(like) / sequences, like[~np.eye(sequences, dtype=bool)].mean()
    draws = [rng.permutation(sequences)[pairs[:count]] for _ in range(64)]
    apart = [abs(like[d, d].mean() - one) + abs(like[d[:, 0], d[:, 1]].mean() - two) for d in draws]
    return tokens[draws[int(np.argmin(apart))]]


@dataclass(frozen=True)
class TokenBatch:
    """Which tokens of a network's sequences agree, and for how many pairs of the batch's sequences each block stands.

    same_input, same_target, follows (the first one's input is the second one's target): [n, S, S]; between sequences of
    random tokens, the probability that two agree, but for the inputs of a tied table if enough are seen to agree.
    weight: [sequences, sequences].
    """

    size: int
    same_input: np.ndarray
    same_target: np.ndarray
    follows: np.ndarray
    weight: np.ndarray

    @staticmethod
    def of(arch: Architecture, size: int, tokens: np.ndarray, random: bool) -> "TokenBatch":
        """A batch of that size from tokens [n, sequences, T + 1]; random: they stand for independent ones."""
        networks, sequences, _ = tokens.shape
        inputs, targets = (part.reshape(networks, -1) for part in (tokens[..., :-1], tokens[..., 1:]))
        same_input, same_target, follows = (
            (first[:, :, None] == second[:, None, :]).astype(np.float32)
            for first, second in ((inputs, inputs), (targets, targets), (inputs, targets))
        )
        if random:
            apart = np.kron(1 - np.eye(sequences), np.ones((arch.seq_len, arch.seq_len))) > 0
            chance, known = np.float32(1 / arch.vocab_size), np.einsum("nss->ns", follows)[:, None, :]
            seen = arch.tied and arch.vocab_size < networks * arch.seq_len**2 / 2
            follows = np.where(apart, np.where(same_input, known, chance) if seen else chance, follows)
            same_input = np.where(apart & (not seen), chance, same_input)
            same_target = np.where(apart, chance, same_target)
        weight = np.full((sequences, sequences), size * (size - 1) / max(sequences * (sequences - 1), 1))
        np.fill_diagonal(weight, size / sequences)
        return TokenBatch(size, same_input, same_target, follows, weight)

    def total(self, kernel: np.ndarray) -> float:
        """Sum of a kernel over all pairs of the batch's tokens, in the mean over networks."""
        count, seq_len = len(self.weight), kernel.shape[-1] // len(self.weight)
        rows = kernel.reshape(-1, seq_len) @ np.ones(seq_len, kernel.dtype)
        blocks = rows.reshape(-1, count, seq_len, count).sum(axis=(0, 2), dtype=np.float64)
        return float((self.weight * blocks).sum()) / len(kernel)

    def trace(self, kernel: np.ndarray) -> float:
        """Sum of a kernel's diagonal over the batch's tokens, in the mean over networks."""
        return self.summed(np.einsum("nss->ns", kernel))

    def summed(self, values: np.ndarray) -> float:
        """Sum of values [n, S] over the batch's tokens, in the mean over networks."""
        return float(self.weight[0, 0] * values.mean(axis=0, dtype=np.float64).sum())
