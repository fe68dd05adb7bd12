"""`python tests/faults [COUNT] [SEED]`: a long campaign of faults, and what became of them."""

import os
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    os.environ["OMP_NUM_THREADS"] = "1"  # as the commands have it, so that sums round alike
    from campaign import FLIPPED, Campaign

    count, seed = (int(word) for word in (sys.argv[1:] + ["100", "0"][len(sys.argv) - 1 :])[:2])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DCGAN_CACHE"] = str(Path(folder, "cache"))
        campaign = Campaign(Path(folder), seed)
        for index in range(count):
            campaign.flip(FLIPPED[index % len(FLIPPED)])
            if index % 4 == 0:
                campaign.kill()
                campaign.fill_disk()
        campaign.kill_processes(count // 2)
    print(", ".join(f"{name} {number}" for name, number in campaign.counts.items()) + f", lost {len(campaign.lost)}")
    print(*campaign.lost, sep="\n")
    sys.exit(bool(campaign.lost))
