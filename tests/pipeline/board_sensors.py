# SPDX-License-Identifier: MIT
"""The sensors of an Orin Nano as files, the way Jetson Linux 36 lays them out.

python -m tests.pipeline.board_sensors FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

HWMON = "sys/class/hwmon/hwmon3"
OVER_CURRENT = "sys/class/hwmon/hwmon1"
GPU = "sys/class/devfreq/17000000.gpu"
THERMAL = "sys/class/thermal"
RAILS = {"VDD_IN": (5000, 908), "VDD_CPU_GPU_CV": (5000, 104), "VDD_SOC": (5000, 289)}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def nano_sensors(root: Path) -> Path:
    """A Nano at rest: 4.54 W at 47.75 °C; the channels beside the rails as they are there."""
    files = {f"{HWMON}/name": "ina3221\n", f"{OVER_CURRENT}/name": "soctherm_oc\n"}
    for channel, (label, (millivolts, milliamperes)) in enumerate(RAILS.items(), 1):
        files[f"{HWMON}/in{channel}_label"] = f"{label}\n"
        files[f"{HWMON}/in{channel}_input"] = f"{millivolts}\n"
        files[f"{HWMON}/curr{channel}_input"] = f"{milliamperes}\n"
    files |= {f"{HWMON}/in7_label": "sum of shunt voltages\n", f"{HWMON}/in7_input": "9\n"}
    files |= {f"{OVER_CURRENT}/oc{n}_event_cnt": f"{n}\n" for n in (1, 2, 3)}
    zones = ("cpu", "gpu", "cv0", "cv1", "cv2", "soc0", "soc1", "soc2", "tj")
    for number, zone in enumerate(zones):
        files[f"{THERMAL}/thermal_zone{number}/type"] = f"{zone}-thermal\n"
        # The cv zones exist on a Nano and refuse to be read; what is empty is no number either.
        text = "" if zone.startswith("cv") else "47750\n"
        files[f"{THERMAL}/thermal_zone{number}/temp"] = text
    for number, kind in enumerate(("pwm-fan", "cpufreq-cpu0", "17000000.gpu")):
        files[f"{THERMAL}/cooling_device{number}/type"] = f"{kind}\n"
        files[f"{THERMAL}/cooling_device{number}/cur_state"] = "0\n"
    files |= {
        f"{GPU}/cur_freq": "306000000\n",
        f"{GPU}/max_freq": "1020000000\n",
        f"{GPU}/device/load": "625\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "729600\n",
        "proc/meminfo": "MemTotal: 7789952 kB\nSwapTotal: 3894976 kB\nSwapFree: 3635904 kB\n",
    }
    return write(root, files)


def set_power(root: Path, watts: float) -> None:
    """What VDD_IN draws, at 5 V."""
    (root / HWMON / "curr1_input").write_text(f"{round(watts * 200)}\n")


if __name__ == "__main__":
    nano_sensors(Path(sys.argv[1]))
