"""What this machine's processor can do, without loading a tensor library."""

from pathlib import Path

from customdiff_core.config import Precision

BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # as x86 and ARM call it
CPUINFO = Path("/proc/cpuinfo")


def native_precision(cpuinfo: Path = CPUINFO) -> Precision:
    """Return "bf16" where the processor multiplies it, which draws twice as fast as fp32; elsewhere it is emulated, and slower.

    What is not Linux, and tells nothing, gets "fp32".
    """
    if not cpuinfo.is_file():
        return "fp32"
    told = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
    features = {word for name, _, words in told if name.strip() in ("flags", "Features") for word in words.split()}
    return "bf16" if features & BF16 else "fp32"
