#!/usr/bin/env python3
"""Write a small job directory for `engine train`: make_job.py DIRECTORY BASE DEVICE NUMERICS.

Rows are made here, the same for every device.
"""

import json
import os
import sys


def main():
    directory, base, device, numerics = sys.argv[1:5]
    options = {"max_steps": 20, "learning_rate": 5e-3, "lora_r": 8, "batch_size": 200, "seed": 7, "n_evals": 1}
    with open(os.path.join(directory, "job.json"), "w") as file:
        json.dump({"version": 1, "base": {"path": base, "name": "base"}, "device": device, "threads": 4,
                   "numerics": numerics, "options": options}, file)
    rows = [{"prompt": f"row {i} of the table", "completion": f"the number {i * i % 97}"} for i in range(160)]
    for name, part in (("train", rows[:128]), ("validation", rows[128:])):
        with open(os.path.join(directory, name + ".jsonl"), "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in part)


if __name__ == "__main__":
    main()
