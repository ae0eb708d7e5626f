"""The thin library that a student reads: losses, sampling, one loop for each method, measures."""

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # whose layers it writes out; SmolLM2 is a Llama
