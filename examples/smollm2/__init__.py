"""SmolLM2-135M-Instruct on NumPy, its linear layers on quantplan."""
