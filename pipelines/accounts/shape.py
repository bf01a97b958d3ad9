"""Shape: how big a model is, from its config.json alone: parameters, FLOPs of a token, bytes of weights and of KV.

Sources. FLOPs: 2 x parameters for each token (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), without the input
embedding, which is a look-up, and with the output head only for tokens that are sampled, as engines do. Attention:
2 x (query-key + value) dimensions x heads x layers for each pair of a query and a key before it (BlendServe, arXiv
2411.16102, section 4.1, with the causal half). KV: 2 x layers x KV heads x head dimension; with multi-head latent
attention the latent and the rotary part once (DeepSeek-V2, arXiv 2405.04434, section 2.1). Biases and the norms of
queries and keys are left out: below 0.1 % of any model here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

# Two matrices in the MLP, not three: no gate.
_PLAIN_MLP = ("gpt2", "gpt_neox", "gptj", "gpt_bigcode", "bloom", "opt", "falcon", "mpt", "phi", "starcoder2")
# Bytes of a parameter. 4-bit: with a 16-bit scale and a 4-bit zero for each 128 weights; mxfp4: 8 bits for each 32.
WEIGHT_BYTES = {
    "float32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 0.5 + 2.5 / 128,
    "mxfp4": 0.5 + 1 / 32,
}
_FAMILIES = {"compressed-tensors": "int8", "gptq": "int4", "awq": "int4", "mxfp4": "mxfp4", "fp8": "fp8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a decoder-only model."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int  # of queries and keys
    value_dim: int  # of values
    vocab: int
    tied: bool  # the output head is the input embedding
    attention: int  # parameters of the attention of one layer
    mlp_total: int  # parameters of all MLPs, experts and routers, of all layers
    mlp_active: int  # those that a token goes through
    latent: int | None = None  # elements of KV that a layer keeps for a token, under multi-head latent attention

    @classmethod
    def of_folder(cls, folder: str | Path) -> Self | None:
        """The shape of the model in a folder; None: its config.json is not there or tells too little."""
        try:
            config = json.loads((Path(folder) / "config.json").read_bytes())
        except (OSError, ValueError):
            return None
        return cls.of(config)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self | None:
        """The shape that a config.json describes; None: it tells too little."""
        inner = config.get("text_config")
        said = inner if isinstance(inner, dict) else config

        def number(*names: str) -> int | None:
            return next((said[name] for name in names if isinstance(said.get(name), int)), None)

        hidden, layers = number("hidden_size", "n_embd", "d_model"), number("num_hidden_layers", "n_layer", "n_layers")
        heads, vocab = number("num_attention_heads", "n_head", "n_heads"), number("vocab_size")
        if not hidden or not layers or not heads or not vocab:
            return None
        kv_heads = number("num_key_value_heads", "n_head_kv") or (1 if said.get("multi_query") else heads)
        head_dim = number("head_dim") or hidden // heads
        inner_size = number("intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
        total, active = _mlp(said, hidden, inner_size, layers)
        attention = hidden * head_dim * (heads + 2 * kv_heads) + heads * head_dim * hidden
        value_dim, latent = head_dim, None
        if (rank := number("kv_lora_rank")) is not None:
            rope, nope = number("qk_rope_head_dim") or 0, number("qk_nope_head_dim") or head_dim
            value_dim, head_dim, latent = number("v_head_dim") or head_dim, nope + rope, rank + rope
            low = number("q_lora_rank")
            queries = heads * head_dim * (low if low else hidden) + (hidden * low if low else 0)
            attention = queries + hidden * latent + rank * heads * (nope + value_dim) + heads * value_dim * hidden
        return cls(
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=value_dim,
            vocab=vocab,
            tied=bool(said.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
            attention=attention,
            mlp_total=total,
            mlp_active=active,
            latent=latent,
        )

    @property
    def body(self) -> int:
        """Parameters that every token is multiplied with: attention and MLP, of the experts those that it meets."""
        return self.layers * self.attention + self.mlp_active

    @property
    def head(self) -> int:
        """Parameters of the output head."""
        return self.hidden * self.vocab

    @property
    def parameters(self) -> int:
        """All of them, embedding, head and norms included."""
        norms = self.hidden * (2 * self.layers + 1)
        return self.layers * self.attention + self.mlp_total + norms + self.head * (1 if self.tied else 2)

    @property
    def flops_per_prompt_token(self) -> int:
        """Without attention."""
        return 2 * self.body

    @property
    def flops_per_output_token(self) -> int:
        """Without attention; with the output head."""
        return 2 * (self.body + self.head)

    @property
    def flops_per_pair(self) -> int:
        """Attention of one query to one key."""
        return 2 * self.layers * self.heads * (self.head_dim + self.value_dim)

    def kv_bytes_per_token(self, element_bytes: float) -> float:
        """What one token leaves in the KV cache. Of models whose layers look back a window only, this is the most."""
        if self.latent is not None:
            return self.latent * self.layers * element_bytes
        return 2 * self.kv_heads * self.head_dim * self.layers * element_bytes

    def weight_bytes(self, number: str, embedding: str = "bfloat16") -> float:
        """All weights in these numbers (a key of WEIGHT_BYTES); what is quantized leaves embedding and head alone."""
        outer = self.head * (1 if self.tied else 2)
        whole = WEIGHT_BYTES[number]
        return (self.parameters - outer) * whole + outer * max(whole, WEIGHT_BYTES[embedding])


def numbers_of(dtype: str, quantization: str | None) -> str:
    """In which numbers the weights lie, a key of WEIGHT_BYTES. `quantization` as vLLM or the checkpoint names it."""
    if not quantization:
        return dtype
    family = quantization.lower().removeprefix("auto_").removesuffix("_marlin")
    for name, numbers in _FAMILIES.items():
        if family.startswith(name):
            return numbers
    return "int8" if "int8" in family else "int4" if "int4" in family else dtype


def _mlp(said: Mapping[str, Any], hidden: int, inner: int, layers: int) -> tuple[int, int]:
    """Parameters of the MLPs of all layers, and those that one token meets."""
    matrices = 2 if said.get("model_type") in _PLAIN_MLP else 3
    dense = matrices * hidden * inner

    def number(*names: str) -> int:
        return next((said[name] for name in names if isinstance(said.get(name), int)), 0)

    experts = number("num_local_experts", "num_experts", "n_routed_experts")
    if experts < 2:
        return layers * dense, layers * dense
    each = matrices * hidden * (number("moe_intermediate_size") or inner)
    shared = number("n_shared_experts") * each + matrices * hidden * number("shared_expert_intermediate_size")
    router = hidden * experts
    plain = number("first_k_dense_replace")
    sparse = layers - plain
    met = number("num_experts_per_tok", "experts_per_token", "num_experts_per_token") or 1
    return (
        plain * dense + sparse * (router + shared + experts * each),
        plain * dense + sparse * (router + shared + met * each),
    )
