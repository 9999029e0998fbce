"""Sequences of a recurrent actor on made-up rollouts: cutting, chunks, sub-samples, minibatches."""

import numpy as np
import pytest
import torch as th

from sb3_trpo._batch import ActorBatch, Rollout, SequenceBatch
from sb3_trpo._read_buffer import minibatches
from sb3_trpo._sequences import Sequences, cut_sequences


def cut(*lengths: int) -> Sequences:
    """Cut rows 0, 1, 2, ... into sequences of these lengths, in this order."""
    n = sum(lengths)
    is_start = th.zeros(n, dtype=th.bool)
    is_start[np.cumsum([0, *lengths[:-1]])] = True
    return cut_sequences(th.arange(n), is_start, (th.zeros(n, 1, 1), th.zeros(n, 1, 1)))


def rows_in(sequences: Sequences) -> list[list[int]]:
    """List the rows of every sequence without padding."""
    pairs = zip(sequences.rows.tolist(), sequences.lengths.tolist(), strict=True)
    return [rows[:length] for rows, length in pairs]


def batch_of(*lengths: int) -> SequenceBatch:
    sequences = cut(*lengths)
    per_state = th.arange(float(sum(lengths)))
    batch = ActorBatch(per_state[:, None], per_state, per_state, per_state, (len(per_state), 1))
    return batch.in_sequences(sequences.rows.flatten(), sequences)


def test_longest_sequences_come_first_and_equally_long_ones_stay_in_order() -> None:
    """With many of them: an unstable sort keeps a few in order by chance."""
    lengths = [2] * 50 + [3] + [2] * 50
    found = rows_in(cut(*lengths))
    assert len(found[0]) == 3
    firsts = [rows[0] for rows in found[1:]]
    assert firsts == sorted(firsts)


def test_batch_size_counts_states() -> None:
    sequences = cut(*[4] * 10)
    parts = list(sequences.shuffled(8))
    assert [int(part.lengths.sum()) for part in parts] == [8] * 5


def test_batch_size_below_the_length_of_a_sequence_takes_one_at_a_time() -> None:
    assert [len(part.lengths) for part in cut(4, 4, 4).shuffled(2)] == [1, 1, 1]


def test_sequences_are_shuffled_anew_in_every_epoch() -> None:
    """The return of a state is its row, which tells the sequences apart."""
    sequences = cut(*[2] * 30)
    rows = th.arange(60.0)
    rollout = Rollout(
        rows[:, None], rows, rows, rows, rows, rows, (60, 1), critic_sequences=sequences
    )
    np.random.seed(0)
    # The buffer is not asked for anything: the sequences are cut already.
    parts = list(minibatches(None, rollout, 20, n_epochs=3))  # type: ignore[arg-type]
    epochs = [th.cat([returns for _, returns in parts[i : i + 3]]).tolist() for i in (0, 3, 6)]
    assert len(parts) == 9
    assert all(sorted(epoch) == rows.tolist() for epoch in epochs)
    orders = {tuple(epoch) for epoch in [*epochs, rows.tolist()]}
    assert len(orders) == 4


@pytest.mark.parametrize("offset", range(12))
@pytest.mark.parametrize("k", [2, 4, 10])
def test_sub_sample_of_fewer_sequences_than_the_factor_is_not_empty(k: int, offset: int) -> None:
    """The offset counts the updates, so it goes beyond the number of sequences."""
    some = batch_of(3, 2, 2).every(k, offset)
    assert some.weight_sum > 0


@pytest.mark.parametrize(
    ("lengths", "max_states"),
    [([4] * 10, 8), ([4] * 10, 7), ([9, 5, 4, 3, 3, 2, 1, 1], 10), ([6, 6, 1, 1, 1, 1], 12)],
)
def test_chunks_have_no_more_states_than_allowed_padding_included(
    lengths: list[int], max_states: int
) -> None:
    batch = batch_of(*lengths)
    chunks = batch.chunks(max_states)
    assert len(chunks) > 1
    assert all(len(chunk) <= max_states for chunk in chunks)
    found = [rows for chunk in chunks for rows in rows_in(chunk.sequences)]
    assert found == rows_in(batch.sequences)


def test_sequence_longer_than_a_chunk_may_be_is_a_chunk_for_itself() -> None:
    assert [len(chunk) for chunk in batch_of(9, 2, 2).chunks(4)] == [9, 4]
