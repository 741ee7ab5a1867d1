"""Named shapes of the decoder, from 0.1M to 70B parameters."""

from synthjax.schema import Model

PRESETS: dict[str, Model] = {
  # Sizes for a laptop; relu because XLA's silu costs about 5x a relu on CPU.
  "world_160k": Model(d_model=64, layers=3, heads=2, kv_heads=2, head_dim=32, mlp_dim=256, mlp="relu", tie_embeddings=True),
  "tiny_1m": Model(d_model=128, layers=5, heads=4, kv_heads=4, head_dim=32, mlp_dim=512, mlp="relu", tie_embeddings=True),
  "small_10m": Model(d_model=320, layers=8, heads=10, kv_heads=10, head_dim=32, mlp_dim=1280, mlp="relu2", tie_embeddings=True),
  "base_100m": Model(
    d_model=768, layers=12, heads=12, kv_heads=12, head_dim=64, mlp_dim=2048, tie_embeddings=True, remat="dots"),
  # Published shapes; tests/model/test_transformer.py holds them to their published numbers of
  # parameters.
  "llama3_1b": Model(
    d_model=2048, layers=16, heads=32, kv_heads=8, head_dim=64, mlp_dim=8192, vocab_size=128_256, rope_theta=500_000.0,
    rope_scaling="llama3", rope_factor=32.0, tie_embeddings=True, remat="full"),
  "llama2_7b": Model(
    d_model=4096, layers=32, heads=32, kv_heads=32, head_dim=128, mlp_dim=11_008, vocab_size=32_000,
    remat="full"),
  "deepseek_7b": Model(  # DeepSeek-LLM-7B; DeepSeek-Math-7B has its shape
    d_model=4096, layers=30, heads=32, kv_heads=32, head_dim=128, mlp_dim=11_008,
    vocab_size=102_400, norm_epsilon=1e-6, remat="full"),
  "llama3_8b": Model(
    d_model=4096, layers=32, heads=32, kv_heads=8, head_dim=128, mlp_dim=14_336, vocab_size=128_256,
    rope_theta=500_000.0, remat="full"),
  "qwen2_7b": Model(
    d_model=3584, layers=28, heads=28, kv_heads=4, head_dim=128, mlp_dim=18_944, vocab_size=152_064,
    rope_theta=1_000_000.0, norm_epsilon=1e-6, qkv_bias=True, remat="full"),
  "llama3_70b": Model(
    d_model=8192, layers=80, heads=64, kv_heads=8, head_dim=128, mlp_dim=28_672, vocab_size=128_256,
    rope_theta=500_000.0, remat="full"),
}
