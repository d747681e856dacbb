# SPDX-License-Identifier: MIT
"""Whether an answer depends on how many others run beside it, and how to keep it from that.

Matrix products take rows in groups, and some kernels treat a last row that fills no group in
another order of arithmetic, or with another rounding: ONNX Runtime's 4 and 8 bit products take
pairs, and an odd row differs by a few percent of the largest logit. A batch that is always
filled up to whole groups gives each row the same answer in any company.
"""

from __future__ import annotations

import logging

import numpy as np

from pipeline.session import Floats, Session, State, TokenIds

logger = logging.getLogger(__name__)


def find_row_multiple(session: Session, most_rows: int) -> int:
    """The smallest power of two whose multiples are batch sizes in which rows do not matter.

    Asks the model itself: each of some rows alone, then in batches of all sizes, forwards and
    backwards; logits and states must be the same to the last bit.

    Args:
        session: The model.
        most_rows: The largest batch.

    Returns:
        1 where nothing needs to be filled up. Also 1, with a warning in the log, where no
        multiple up to `most_rows` helps.
    """
    vocab_size = session.architecture.vocab_size
    token_ids = np.array([(7 * row + 1) % vocab_size for row in range(most_rows)], dtype=np.int64)
    states = [session.prefill(token_ids[row : row + 1, None])[1] for row in range(most_rows)]
    multiple = 1
    while multiple <= most_rows:
        if _is_indifferent(session, token_ids, states, multiple):
            return multiple
        multiple *= 2
    logger.warning("answers may depend on how many run at once: no batch size avoids it")
    return 1


def _is_indifferent(
    session: Session, token_ids: TokenIds, states: list[State], multiple: int
) -> bool:
    alone = [_step(session, token_ids, states, [row] * multiple)[0] for row in range(len(states))]
    for size in range(multiple, len(states) + 1, multiple):
        for rows in (list(range(size)), list(range(size))[::-1]):
            together = _step(session, token_ids, states, rows)
            for row, values in zip(rows, together, strict=True):
                if not all(map(np.array_equal, values, alone[row])):
                    return False
    return True


def _step(
    session: Session, token_ids: TokenIds, states: list[State], rows: list[int]
) -> list[tuple[Floats, Floats, Floats]]:
    """Logits and both states of each row after one step of a batch."""
    batch = State(
        conv=np.concatenate([states[row].conv for row in rows], axis=1),
        ssm=np.concatenate([states[row].ssm for row in rows], axis=1),
    )
    logits, after = session.step(token_ids[rows], batch)
    return [
        (logits[index].copy(), after.conv[:, index].copy(), after.ssm[:, index].copy())
        for index in range(len(rows))
    ]
