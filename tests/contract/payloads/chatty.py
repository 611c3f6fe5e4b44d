"""Never stops talking until a file is there; says at the end how much it has said."""

import os
import time
from pathlib import Path

from dagster_pipes import open_dagster_pipes

desk = Path(os.environ["DESK"])
with open_dagster_pipes() as pipes:
    with (desk / "count").open("a") as count:
        count.write("ran\n")
    number = 0
    while not (desk / "go").exists():
        print("line", number, "x" * (number % 500))
        if number % 100 == 0:
            pipes.log.info(f"said {number}")
            time.sleep(0.1)
        number += 1
    (desk / "said").write_text(str(number))
