# SPDX-License-Identifier: MIT
"""What the decode kernel took on the board's stand-in, for predictions.

Figures of docs/measurements/decode.json, which a test holds equal; see there for date and command.
The stand-in is a share of one NVIDIA H200 with as many multiprocessors as an Orin Nano.
"""

from __future__ import annotations

STAND_IN = "8 multiprocessors of one NVIDIA H200"
MULTIPROCESSORS = 8
#: The highest clock of that GPU. The run does not say which it held; a lower one would make the
#: predictions too slow.
CLOCK_MHZ = 1980.0

#: Of the bandwidth that a plain streaming read reached in the same run, what the whole GPU read
#: in the case nearest to it, mamba-1.4b in fp16.
BUS_SHARE = 0.717

#: Milliseconds a token of one text, by model and precision.
MILLISECONDS: dict[tuple[str, str], float] = {
    ("mamba-130m", "fp16"): 0.537,
    ("mamba-130m", "int8"): 0.5014,
    ("mamba-130m", "int4"): 0.4862,
    ("mamba-370m", "fp16"): 1.353,
    ("mamba-370m", "int8"): 1.1355,
    ("mamba-370m", "int4"): 1.0032,
    ("mamba-1.4b", "fp16"): 3.9416,
    ("mamba-1.4b", "int8"): 3.0778,
    ("mamba-1.4b", "int4"): 2.562,
    ("mamba-2.8b", "fp16"): 7.685,
    ("mamba-2.8b", "int8"): 5.9122,
    ("mamba-2.8b", "int4"): 4.8745,
}
