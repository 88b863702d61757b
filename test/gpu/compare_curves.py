#!/usr/bin/env python3
"""Compare the losses of two runs' events: compare_curves.py A B TOLERANCE (relative)."""

import json
import sys


def losses(path):
    found = {}
    with open(path) as file:
        for line in file:
            event = json.loads(line)
            if event.get("event") == "step":
                found["training", event["step"]] = event["training_loss"]
            elif event.get("event") == "evaluation":
                found["validation", event["step"]] = event["validation_loss"]
            elif event.get("event") == "failed":
                sys.exit(f"{path}: {event}")
    return found


def main():
    a, b, tolerance = losses(sys.argv[1]), losses(sys.argv[2]), float(sys.argv[3])
    if len(a) < 10 or a.keys() != b.keys():
        sys.exit(f"{len(a)} and {len(b)} losses, or of other steps")
    worst = 0
    for key in sorted(a):
        difference = abs(a[key] - b[key]) / abs(a[key])
        worst = max(worst, difference)
        print(*key, a[key], b[key], f"{difference:.2e}")
    first, last = min(s for k, s in a if k == "training"), max(s for k, s in a if k == "training")
    if not a["training", last] < a["training", first]:
        sys.exit("the loss did not fall")
    print(f"largest relative difference {worst:.2e}, at most {tolerance:g} is right")
    sys.exit(0 if worst <= tolerance else 1)


if __name__ == "__main__":
    main()
