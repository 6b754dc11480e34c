"""In a process of its own: prints the measured peak in bytes of some full fine-tuning steps of a network."""

import json
import sys

import timm
import torch
import torch.nn.functional as F

from hf_trady.memory import PeakTracker


def main(name: str, batch_size: int, size: int, steps: int) -> None:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=10).train()
    images, labels = torch.zeros(batch_size, 3, size, size), torch.zeros(batch_size, dtype=torch.long)
    tracker, peaks = PeakTracker(already=images.nbytes), []
    optimizer = torch.optim.AdamW(net.parameters())
    for _ in range(steps):
        tracker.reset()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        peaks.append(tracker.peak)
    optimizer.state.clear()
    print(json.dumps({"method": tracker.method, "peaks": peaks, "left_over": tracker.current}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
