# SPDX-License-Identifier: MIT
"""mamba-ssm, the implementation of Mamba's authors, as a peer. The only module that imports it.

Runs as its own `generate(…, cg=True)` does: prompts by its kernels, each token by a CUDA graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.architecture import MambaArchitecture
from pipeline.checkpoint import in_state_spaces_format
from pipeline.quantize import read_dequantised
from pipeline.session import Floats, TokenIds
from pipeline.weights import WEIGHT_FILE


class MambaSsmSession:
    """Runs a bundle's weights by mamba-ssm on the GPU in float16, the residual in float32.

    States stay with mamba-ssm; the one that came last is the one a step goes on from.

    Args:
        bundle: Folder of the weights, which are unpacked if they are packed.
        architecture: Sizes of the model, without mixer norms.
        batch: Texts.
        max_length: Tokens of a text, prompt included.
    """

    def __init__(
        self, bundle: Path, architecture: MambaArchitecture, batch: int, max_length: int
    ) -> None:
        from mamba_ssm.models.config_mamba import MambaConfig
        from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
        from mamba_ssm.utils.generation import update_graph_cache

        a = architecture
        config = MambaConfig(
            d_model=a.d_model,
            n_layer=a.n_layer,
            vocab_size=a.vocab_rows,
            ssm_cfg={
                "d_state": a.d_state,
                "d_conv": a.d_conv,
                "expand": a.d_inner // a.d_model,
                "dt_rank": a.dt_rank,
            },
            pad_vocab_size_multiple=1,
            tie_embeddings=a.head_weight == "embedding.weight",
        )
        self._model = MambaLMHeadModel(config, device="cuda", dtype=torch.float16).eval()
        weights = dict(
            in_state_spaces_format(name, torch.from_numpy(value))
            for name, value in read_dequantised(bundle / WEIGHT_FILE, a)
        )
        if config.tie_embeddings:
            weights["lm_head.weight"] = weights["backbone.embedding.weight"]
        self._model.load_state_dict(weights)
        self._vocab_size, self._max_length = a.vocab_size, max_length
        self._graphs: Any = update_graph_cache(self._model, None, batch, 0, max_length)

    @torch.inference_mode()
    def prefill(self, token_ids: TokenIds) -> tuple[Floats, None]:
        """Reads texts (b, l) from their beginning; logits (b, vocab) after their last tokens."""
        parameters = self._graphs.inference_params
        parameters.reset(self._max_length, token_ids.shape[0])
        logits = self._model(
            torch.from_numpy(token_ids).cuda(), inference_params=parameters, num_last_tokens=1
        ).logits
        parameters.seqlen_offset += token_ids.shape[1]
        return self._on_host(logits), None

    @torch.inference_mode()
    def step(self, token_ids: TokenIds, state: None) -> tuple[Floats, None]:
        """Reads one token (b,) more of each text; logits (b, vocab)."""
        del state
        parameters = self._graphs.inference_params
        ids = torch.from_numpy(token_ids[:, None]).cuda()
        position_ids = torch.full_like(ids, parameters.seqlen_offset)
        logits = self._graphs.run(ids, position_ids, parameters.seqlen_offset)
        parameters.seqlen_offset += 1
        return self._on_host(logits), None

    def _on_host(self, logits: torch.Tensor) -> Floats:
        found: Floats = logits[:, -1, : self._vocab_size].float().cpu().numpy()
        return found
