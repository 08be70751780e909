#!/usr/bin/env bash
# Sets up mmdyn's virtual environment from nothing; `make setup` calls it.
#
# What is done is recorded per step under $VENV/.mmdyn with a hash of what the step depends on.
# A second run therefore only compares hashes (well under a second), an interrupted one goes on
# at the step it was in, and a changed requirements file repeats the steps it touches.
#
# Environment:
#   LINE         of OpenMMLab's packages: maintained (default) or original
#   PYTHON       interpreter to make the environment with (default: python3.11, then whichever
#                supported one is found; given by the user, it is taken or refused, never swapped)
#   VENV         the environment's folder (default: .venv, of the original line .venv-original)
#   TORCH_INDEX  package index for torch and torchvision only,
#                e.g. https://download.pytorch.org/whl/cpu (default: pip's own)
#   MMDYN_CACHE  where wheels of mmcv are kept (default: ~/.cache/mmdyn)
#   MAX_JOBS     compilers run at a time while mmcv is built (default: by cores and memory)
# pip's own variables (PIP_FIND_LINKS, PIP_INDEX_URL, ...) are honoured by pip.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

LINE=${LINE:-maintained}
REQ=requirements
# What of the requirements differs between the two lines of OpenMMLab's packages.
case $LINE in
    maintained)
        PYTHONS='3.11 3.12 3.10' PYTHONS_TEXT='3.10, 3.11 or 3.12' DEFAULT_VENV=.venv
        LINE_REQ=$REQ RUNTIME=$REQ/runtime.txt EXTRAS=(export.txt app.txt docs.txt)
        ;;
    original)
        # Its torch has no wheels for Python 3.12, and exports nothing.
        PYTHONS='3.11 3.10' PYTHONS_TEXT='3.10 or 3.11' DEFAULT_VENV=.venv-original
        LINE_REQ=$REQ/original RUNTIME=$REQ/original.txt EXTRAS=(app.txt docs.txt)
        ;;
    *)
        printf '[setup] error: LINE=%s is none of maintained, original.\n' "$LINE" >&2
        exit 2
        ;;
esac
NEEDS="mmdyn with the $LINE OpenMMLab line needs $PYTHONS_TEXT."
VENV=${VENV:-$DEFAULT_VENV}
PYTHON=${PYTHON:-}
TORCH_INDEX=${TORCH_INDEX:-}
CACHE=${MMDYN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mmdyn}
case $VENV in /*) VENV_DIR=$VENV ;; *) VENV_DIR=$PWD/$VENV ;; esac
PY=$VENV_DIR/bin/python
STATE=$VENV_DIR/.mmdyn
MMCV_PIN=$(sed -n '/^[a-z-]*==/p' $LINE_REQ/mmcv.txt)
MMCV_NAME=${MMCV_PIN%%==*}
MMCV_WHEEL="${MMCV_NAME//-/_}-${MMCV_PIN##*==}-*.whl"
# What all of it came to (8.2 GB), and some room for pip to unpack in.
DISK_MB=9500
TORCH_VERSION=$(sed -n 's/^torch==//p' $LINE_REQ/torch.txt)

# A user-wide `pip install --user` default makes pip fail inside a virtual environment.
unset PIP_USER

say() { printf '[setup] %s\n' "$*"; }
fail() {
    printf '[setup] error: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '        %s\n' "$@" >&2
    exit 2
}

# ---------------------------------------------------------------- steps and their records

# key NAME...: a hash of the named files' contents and of the other words given.
key() {
    local word
    for word in "$@"; do
        if [ -f "$word" ]; then cat "$word"; else printf '%s\n' "$word"; fi
    done | cksum | tr ' ' '-'
}

is_done() { [ "$(cat "$STATE/$1" 2>/dev/null)" = "$2" ]; }

# step NUMBER NAME KEY TEXT: runs step_NAME unless its record has this key.
step() {
    is_done "$2" "$3" && return
    say "[$1/7] $4"
    "step_$2"
    mkdir -p "$STATE"
    printf '%s\n' "$3" >"$STATE/$2"
}

pip() { "$PY" -m pip --disable-pip-version-check "$@"; }

# ---------------------------------------------------------------- the interpreter

# python_version COMMAND: prints e.g. 3.11, nothing if the command does not run. (A pyenv shim
# exists for versions that are not selected; it fails when run.)
python_version() {
    "$1" -I -S -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

is_supported() { case " $PYTHONS " in *" $1 "*) true ;; *) false ;; esac; }

# Without ensurepip (Debian packs it apart) a virtual environment comes out without pip.
can_make_venv() { "$1" -I -c 'import ensurepip, venv' >/dev/null 2>&1; }

# Sets PYTHON and PYTHON_VERSION, or refuses.
choose_python() {
    local candidate version without_venv=''
    if [ -n "$PYTHON" ]; then
        version=$(python_version "$PYTHON")
        [ -n "$version" ] || fail "PYTHON=$PYTHON is not a Python that runs here." \
            "Give the path or name of one of Python $PYTHONS_TEXT: make setup PYTHON=/path/to/python3.11"
        is_supported "$version" || fail "PYTHON=$PYTHON is Python $version; $NEEDS" \
            'Nothing was installed. Give another one: make setup PYTHON=/path/to/python3.11'
        can_make_venv "$PYTHON" || fail "PYTHON=$PYTHON (Python $version) has no venv or ensurepip module." \
            "On Debian or Ubuntu: apt-get install python$version-venv"
        PYTHON_VERSION=$version
        return
    fi
    for candidate in $(printf 'python%s ' $PYTHONS) python3 python; do
        version=$(python_version "$candidate")
        is_supported "$version" || continue
        if can_make_venv "$candidate"; then
            PYTHON=$candidate PYTHON_VERSION=$version
            [ "$candidate" = python3.11 ] || say "no usable python3.11 here, taking $candidate (Python $version)"
            return
        fi
        without_venv=${without_venv:-$version}
    done
    [ -z "$without_venv" ] || fail "Python $without_venv is here, but without its venv or ensurepip module." \
        "On Debian or Ubuntu: apt-get install python$without_venv-venv"
    fail "no Python $PYTHONS_TEXT found on PATH." \
        'On Debian or Ubuntu: apt-get install python3.11 python3.11-venv python3.11-dev' \
        'or give one: make setup PYTHON=/path/to/python3.11'
}

# Sets PYTHON_VERSION and HAVE_VENV from the environment that is there, if one is.
look_at_venv() {
    local found='' wanted
    HAVE_VENV=no
    if [ -x "$PY" ]; then
        found=$(python_version "$PY")
    fi
    if [ -n "$found" ]; then
        HAVE_VENV=yes PYTHON_VERSION=$found
        if [ -n "$PYTHON" ]; then
            wanted=$(python_version "$PYTHON")
            [ "$wanted" = "$found" ] || {
                choose_python # says why, if that PYTHON would not do at all
                fail "VENV=$VENV was made with Python $found, PYTHON=$PYTHON is Python $wanted." \
                    "Use another folder (VENV=.venv$wanted) or remove this one: rm -rf $VENV"
            }
        fi
        [ "$(cat "$STATE/line" 2>/dev/null || echo "$LINE")" = "$LINE" ] || fail \
            "VENV=$VENV holds the $(cat "$STATE/line") OpenMMLab line, and LINE=$LINE would unpack over it." \
            "Use another folder: make setup LINE=$LINE VENV=.venv-$LINE"
        is_supported "$found" || fail \
            "VENV=$VENV has Python $found; $NEEDS" \
            "Remove it (rm -rf $VENV) or use another folder: make setup VENV=.venv-mmdyn"
    elif [ -e "$VENV" ] && [ ! -e "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV")" ]; then
        fail "VENV=$VENV exists and is not a virtual environment." 'Give another folder: make setup VENV=.venv'
    fi
}

# ---------------------------------------------------------------- plain installs

step_build() { pip install -q -r $REQ/build.txt; }

step_torch() {
    if [ -n "$TORCH_INDEX" ]; then
        # Such an index has torch, but seldom the pinned versions of what torch needs: those come
        # from pip's own index in the next step.
        pip install --no-deps --index-url "$TORCH_INDEX" -r $LINE_REQ/torch.txt
    else
        pip install -c $LINE_REQ/constraints.txt -c $RUNTIME -r $LINE_REQ/torch.txt
    fi
}

step_rest() {
    pip install -c $LINE_REQ/constraints.txt -c $REQ/build.txt \
        -r $LINE_REQ/torch.txt -r $RUNTIME -r $REQ/dev.txt "${EXTRAS[@]/#/-r$REQ/}"
    # mmdet's imaug asks for opencv-python *and* opencv-python-headless, which unpack to the same
    # folder: whichever comes last wins. Put the headless one last, always, because the other
    # fails at import on a machine without libGL.
    pip install -q --force-reinstall --no-deps -c $LINE_REQ/constraints.txt -c $RUNTIME \
        opencv-python-headless
    "$PY" -c 'import cv2' || fail 'opencv does not import (above is why).' \
        "Try again from a clean environment: rm -rf $VENV && make setup"
}

step_mmdyn() {
    # The build tools are in the environment already: without isolation this needs no network.
    # The warnings are setuptools' general advice on editable installs.
    PYTHONWARNINGS=ignore pip install -q --no-build-isolation --no-deps -e .
    say 'checking that everything imports'
    (cd / && "$PY" -c 'import cv2, mmengine, mmcv.ops, mmseg, mmdet, mmdyn') || fail \
        'the environment is complete but does not import (above is why).' \
        "Set it up again from nothing: rm -rf $VENV && make setup"
    pip check || say 'note: pip sees the conflicts above; everything imports all the same.'
}

# ---------------------------------------------------------------- mmcv

# Where this machine keeps mmcv's wheel for this Python, torch and kind of ops. pip's own cache
# would not do: it does not tell torch versions apart, nor a wheel with ops from one without.
mmcv_wheel_dir() {
    "$PY" - "$CACHE" "$1" <<'EOF'
import platform
import sys
from pathlib import Path

import torch

cache, kind = sys.argv[1:]
tag = f'cp{sys.version_info[0]}{sys.version_info[1]}'
print(Path(cache) / 'wheels' / f'{tag}-torch{torch.__version__}-{platform.machine()}-{kind}')
EOF
}

# Prints `cuda` if mmcv's CUDA ops can be built here, else `cpu` (and why, on stderr, if a GPU
# is there): they need a GPU (or FORCE_CUDA=1) and an nvcc of torch's own major version.
mmcv_kind() {
    "$PY" - <<'EOF'
import os
import re
import subprocess
import sys

import torch

if not (torch.cuda.is_available() or os.environ.get('FORCE_CUDA', '0') == '1'):
    print('cpu')
    sys.exit()
if torch.version.hip:
    print('hip')
    sys.exit()
# Imported only now: without a GPU it warns about that.
from torch.utils.cpp_extension import CUDA_HOME

found = None
if CUDA_HOME:
    try:
        text = subprocess.run(
            [os.path.join(CUDA_HOME, 'bin', 'nvcc'), '--version'], capture_output=True, text=True
        ).stdout
        found = (re.search(r'release (\d+\.\d+)', text) or [None, None])[1]
    except OSError:
        pass
wanted = torch.version.cuda
if wanted and found and found.split('.')[0] == wanted.split('.')[0]:
    print('cuda')
else:
    print(
        f'[setup] note: a GPU is here, but {"nvcc " + found if found else "no nvcc"}; compiling '
        f'mmcv\'s CUDA ops for this torch takes nvcc {wanted}. Taking its CPU ops: segmentation '
        'trains on the GPU all the same, detection needs the CUDA ops. To add them, install the '
        f'CUDA {wanted} toolkit and run: make setup-mmcv',
        file=sys.stderr,
    )
    print('cpu')
EOF
}

# True if a wheel can be had without building: from PIP_FIND_LINKS or a package index.
mmcv_wheel_on_offer() {
    pip install -q --dry-run --no-deps --ignore-installed --only-binary :all: "$MMCV_PIN" \
        >/dev/null 2>&1
}

mmcv_imports() { (cd / && "$PY" -c 'import mmcv.ops') >"$STATE/mmcv-import.log" 2>&1; }

# Compiles and links a few lines as mmcv's build would: finds a missing compiler, a missing
# Python.h and a compiler too old, before torch's gigabytes are downloaded.
check_compiler() {
    local cxx=${CXX:-c++} dir include
    # As torch does, take the compiler from CXX; the commands below are split on purpose, as
    # CXX may hold `ccache g++`.
    if ! command -v "${cxx%% *}" >/dev/null 2>&1; then
        fail "no C++ compiler: CXX=$cxx is not found. mmcv has no prebuilt wheel for this machine and must be compiled." \
            'On Debian or Ubuntu: apt-get install g++' \
            'On Fedora or RHEL:   dnf install gcc-c++' \
            'Or point PIP_FIND_LINKS at a folder with a wheel of '"$MMCV_PIN"'. Nothing big was downloaded yet.'
    fi
    dir=$(mktemp -d)
    include=$("$PY" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    printf '#include <Python.h>\n#include <optional>\nint f() { return std::optional<int>(1).value(); }\n' \
        >"$dir/check.cpp"
    if ! $cxx -std=c++17 -fPIC -shared -I"$include" "$dir/check.cpp" -o "$dir/check.so" >"$dir/log" 2>&1; then
        cat "$dir/log" >&2
        if grep -q 'Python\.h' "$dir/log"; then
            rm -rf "$dir"
            fail "the headers of Python $PYTHON_VERSION are missing ($include/Python.h); compiling mmcv needs them." \
                "On Debian or Ubuntu: apt-get install python$PYTHON_VERSION-dev" \
                "On Fedora or RHEL:   dnf install python$PYTHON_VERSION-devel"
        fi
        rm -rf "$dir"
        fail "the C++ compiler CXX=$cxx does not compile and link C++17 (above is what it says); mmcv needs that." \
            'On Debian or Ubuntu: apt-get install g++ (9 or newer)'
    fi
    rm -rf "$dir"
}

# Before torch is downloaded: will mmcv have to be compiled, and could it be?
check_mmcv_can_be_had() {
    local kept
    kept="$CACHE/wheels/cp${PYTHON_VERSION/./}-torch$TORCH_VERSION*-$(uname -m)-*/$MMCV_WHEEL"
    if compgen -G "$kept" >/dev/null; then
        say 'mmcv: this machine has a wheel from an earlier set-up'
    elif mmcv_wheel_on_offer; then
        say 'mmcv: a prebuilt wheel is on offer, no compiler needed'
    else
        check_compiler
        say 'mmcv: no prebuilt wheel, it will be compiled; the compiler works'
    fi
}

# Before anything is made: pip finds out in the middle that a disk is full, minutes later.
check_disk() {
    local free there=$VENV_DIR
    [ -z "$TORCH_INDEX" ] || return 0 # another build of torch, of another size
    while [ ! -e "$there" ]; do there=$(dirname "$there"); done
    free=$(df -Pm "$there" 2>/dev/null | awk 'NR == 2 { print $4 }') || true
    [ "${free:-$DISK_MB}" -ge "$DISK_MB" ] || fail \
        "$VENV takes $DISK_MB MB with CUDA's libraries, and its disk has $free MB free." \
        'Free some, put it elsewhere (VENV=/other/disk/venv), or, without a GPU, take a small torch:' \
        'make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu'
}

build_jobs() {
    local cores memory
    cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
    # A file of mmcv takes up to 2 GB to compile against torch's headers.
    memory=$(awk '/^MemAvailable/ { print int($2 / 2000000) }' /proc/meminfo 2>/dev/null || true)
    if [ -n "$memory" ] && [ "$memory" -lt "$cores" ]; then cores=$memory; fi
    [ "$cores" -ge 1 ] || cores=1
    echo "$cores"
}

# build_mmcv WHEEL_DIR KIND: compiles mmcv and leaves its wheel in WHEEL_DIR.
build_mmcv() {
    local wheels=$1 kind=$2 work=$1.build log=$1.build/build.log start pid line shown='' begun=$SECONDS
    check_compiler
    mkdir -p "$work"
    if [ "$(cat "$work/pin" 2>/dev/null)" != "$MMCV_PIN" ]; then
        rm -rf "$work" && mkdir -p "$work/sdist" "$work/unpacked"
        say "downloading the source of $MMCV_PIN"
        pip download -q --no-deps --no-build-isolation --no-cache-dir --no-binary :all: \
            -d "$work/sdist" "$MMCV_PIN"
        tar -xzf "$work"/sdist/*.tar.gz -C "$work/unpacked"
        mv "$work"/unpacked/* "$work/source"
        printf '%s\n' "$MMCV_PIN" >"$work/pin"
    else
        say 'going on with a build that was interrupted'
    fi

    export MAX_JOBS=${MAX_JOBS:-$(build_jobs)}
    say "building mmcv, about 17 minutes on 2 cores (here: $MAX_JOBS at a time), once per machine"
    [ "$kind" = cpu ] || say "with $kind ops, which takes longer"
    say "log: $log"

    # Built in the unpacked folder and not from the archive, so that ninja finds the object files
    # of an interrupted build. The environment's bin/ leads PATH for ninja. A job of its own
    # (set -m), so that an interrupt ends the compilers too.
    set -m
    (
        export PATH="$VENV_DIR/bin:$PATH" MMCV_WITH_OPS=1
        if [ "$kind" = cpu ]; then export CUDA_VISIBLE_DEVICES='' FORCE_CUDA=0; fi
        exec "$PY" -m pip wheel -v --disable-pip-version-check --no-deps \
            --no-build-isolation --no-cache-dir -w "$work/out" "$work/source"
    ) >"$log" 2>&1 </dev/null &
    pid=$!
    set +m
    # shellcheck disable=SC2064
    trap "kill -TERM -- -$pid 2>/dev/null; exit 130" INT TERM
    start=$SECONDS
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        # ninja's own count, `[12/142] c++ ...`; the link and the packing come after it.
        line=$(grep -oE '^ *\[[0-9]+/[0-9]+\]' "$log" | tail -n 1 | tr -d ' []' || true)
        if [ -t 1 ]; then
            printf '\r[setup] mmcv: file %s, %d min %02d s ' "${line:-...}" \
                $(((SECONDS - begun) / 60)) $(((SECONDS - begun) % 60))
        elif [ $((SECONDS - start)) -ge 30 ] || [ -z "$shown" ]; then
            start=$SECONDS shown=yes
            say "mmcv: file ${line:-...}, $(((SECONDS - begun) / 60)) min $(((SECONDS - begun) % 60)) s"
        fi
    done
    [ ! -t 1 ] || echo
    if ! wait "$pid"; then
        trap - INT TERM
        tail -n 40 "$log" >&2
        fail "building mmcv failed; above are the last lines of $log" \
            'If a compiler was killed, memory ran out: try again with MAX_JOBS=1 (the build goes on where it stopped).'
    fi
    trap - INT TERM
    mkdir -p "$wheels"
    mv "$work"/out/${MMCV_NAME//-/_}-*.whl "$wheels/"
    rm -rf "$work"
    say "built in $(((SECONDS - begun) / 60)) min $(((SECONDS - begun) % 60)) s, kept in $wheels"
}

# Installs the wheel from PIP_FIND_LINKS or an index, if there is one and its ops load here.
take_offered_mmcv() {
    mmcv_wheel_on_offer || return 1
    pip install --force-reinstall --no-deps --only-binary :all: "$MMCV_PIN" || return 1
    if ! mmcv_imports; then
        cat "$STATE/mmcv-import.log" >&2
        say 'that wheel does not load its ops here (above is why): building one instead'
        return 1
    fi
    if [ "$1" = cuda ] && "$PY" -c 'import sys
from mmcv.ops import get_compiling_cuda_version
sys.exit(get_compiling_cuda_version() != "not available")'; then
        say "note: that wheel has no CUDA ops, which detection on this machine's GPU needs; to build"
        say '      them, leave the wheel out of PIP_FIND_LINKS and run: make setup-mmcv'
    fi
}

step_mmcv() {
    local kind wheels
    kind=$(mmcv_kind)
    wheels=$(mmcv_wheel_dir "$kind")
    if ! mkdir -p "$CACHE/wheels" 2>/dev/null || [ ! -w "$CACHE/wheels" ]; then
        say "note: $CACHE cannot be written; mmcv's wheel is kept in $VENV, for this checkout alone"
        CACHE=$STATE/cache
        mkdir -p "$CACHE/wheels"
        wheels=$(mmcv_wheel_dir "$kind")
    fi
    # Two checkouts set up at once must not build in one folder.
    if command -v flock >/dev/null; then
        exec 8>"$wheels.lock"
        flock -n 8 || { say 'another set-up is building mmcv, waiting for it'; flock 8; }
    fi

    if compgen -G "$wheels/$MMCV_WHEEL" >/dev/null; then
        say "taking the wheel built before: $wheels"
    elif take_offered_mmcv "$kind"; then
        exec 8>&-
        return
    else
        build_mmcv "$wheels" "$kind"
    fi
    # shellcheck disable=SC2086 # a pattern
    pip install -q --force-reinstall --no-deps "$wheels"/$MMCV_WHEEL
    exec 8>&-
    mmcv_imports || {
        cat "$STATE/mmcv-import.log" >&2
        fail 'mmcv is installed, but its compiled ops do not import (above is why).' \
            "Build it again: rm -rf $wheels && make setup-mmcv"
    }
}

# ---------------------------------------------------------------- all of it

look_at_venv
[ "$HAVE_VENV" = yes ] || choose_python

KEY_BUILD=$(key $REQ/build.txt)
KEY_TORCH=$(key $LINE_REQ/torch.txt "$TORCH_INDEX")
KEY_REST=$(key $LINE_REQ/torch.txt $RUNTIME $REQ/dev.txt "${EXTRAS[@]/#/$REQ/}" $LINE_REQ/constraints.txt)
KEY_MMCV=$(key $LINE_REQ/torch.txt $LINE_REQ/mmcv.txt "$TORCH_INDEX")
# The paths: a checkout that was moved or copied has an environment that points elsewhere.
KEY_MMDYN=$(key setup.py mmdyn/version.py "$PWD" "$VENV_DIR" "$KEY_REST" "$KEY_MMCV")

if [ "$HAVE_VENV" = yes ] && is_done build "$KEY_BUILD" && is_done torch "$KEY_TORCH" &&
    is_done rest "$KEY_REST" && is_done mmcv "$KEY_MMCV" && is_done mmdyn "$KEY_MMDYN"; then
    say "$VENV is up to date (Python $PYTHON_VERSION)"
    exit 0
fi

# An environment that has a torch already grows little by another one.
[ -e "$STATE/torch" ] || check_disk
say "setting up $VENV with Python $PYTHON_VERSION"
trap '[ $? -eq 0 ] || say "stopped (above is why); run make setup again to go on from there"' EXIT
# Runs in one checkout at once wait for each other, and then look again at what is there.
if command -v flock >/dev/null; then
    exec 9>"$VENV_DIR.lock"
    flock -n 9 || { say "another set-up is at work on $VENV, waiting for it"; flock 9; }
    look_at_venv
fi
if [ "$HAVE_VENV" = no ]; then
    say '[1/7] virtual environment'
    "$PYTHON" -m venv --clear "$VENV_DIR" # clears one whose interpreter is gone, if there is one
fi
mkdir -p "$STATE" && printf '%s\n' "$LINE" >"$STATE/line"
# Interrupted between the two, or made by a tool that leaves pip out.
[ -x "$VENV_DIR/bin/pip" ] || "$PY" -m ensurepip --upgrade
step 2 build "$KEY_BUILD" 'build tools'
if ! is_done mmcv "$KEY_MMCV"; then
    say '[3/7] compiler, in case mmcv must be built'
    check_mmcv_can_be_had
fi
step 4 torch "$KEY_TORCH" "torch $TORCH_VERSION and torchvision (some 3 GB with CUDA's libraries, a few minutes; smaller: TORCH_INDEX)"
step 5 rest "$KEY_REST" 'OpenMMLab hosts and everything else'
step 6 mmcv "$KEY_MMCV" "mmcv with its compiled ops ($MMCV_PIN)"
step 7 mmdyn "$KEY_MMDYN" 'mmdyn itself, editable'
say "done: $VENV is ready ($((SECONDS / 60)) min $((SECONDS % 60)) s). Use $VENV/bin/python, or: source $VENV/bin/activate"
