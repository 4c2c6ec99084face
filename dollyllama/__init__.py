"""QLoRA fine-tuning by composable configs, and honest ablation of its tips."""

import os
import sys

if sys.platform == "win32":
    raise ImportError("DollyLlama needs Linux or macOS: on Windows run it in WSL 2")

# OpenMP's threads spin for milliseconds when they have nothing to do, and take the cores
# from whatever else runs: two programs on two cores slowed each other down twenty times. With fewer
# turns they sleep soon. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
