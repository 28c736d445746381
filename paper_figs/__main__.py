"""`python -m paper_figs [DATA [OUT]]`: draw every figure from a folder of CSV files."""

import sys
from pathlib import Path

from paper_figs.catalogue import draw_all
from paper_figs.style import DATA

data = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA
out = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("figures")
for figure, _ in draw_all(data, out):
    print(figure)
