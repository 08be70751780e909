#!/usr/bin/env bash
# Sets up mmdyn's virtual environment from nothing; `make setup` and `make setup-det` call it.
#
#   setup_env.sh       everything for segmentation; mmcv without compiled operators, unless a wheel
#                      with them is at hand
#   setup_env.sh det   and mmcv's compiled operators, which mmdet needs (and the original line's
#                      mmseg: there they come in any case)
#
# Each step is recorded under $VENV/.mmdyn with a hash of what it depends on: a second run only
# compares hashes, an interrupted one continues, a changed requirements file repeats its steps.
#
# Environment:
#   LINE         OpenMMLab line: maintained (default) or original
#   PYTHON       interpreter to create the environment with (default: the first supported one)
#   VENV         folder of the environment (default: .venv, or .venv-original)
#   TORCH_INDEX  package index for torch and torchvision. Default: on Linux without an NVIDIA GPU
#                torch's CPU index, if it can be reached; else pip's own, also by "default"
#   MMDYN_CACHE  folder for mmcv's compiled wheels (default: ~/.cache/mmdyn)
#   MAX_JOBS     parallel compilers for mmcv (default: by cores and memory)
# pip reads its own variables (PIP_FIND_LINKS, PIP_INDEX_URL, ...).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '[setup] %s\n' "$*"; }
fail() {
    printf '[setup] error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf '        %s\n' "${@:2}" >&2
    exit 2
}

WITH_DET=${1:-}
LINE=${LINE:-maintained}
REQ=requirements
case $LINE in
    maintained)
        PYTHONS='3.11 3.12 3.10' DEFAULT_VENV=.venv
        LINE_REQ=$REQ RUNTIME=$REQ/runtime.txt EXTRAS=(export.txt app.txt docs.txt)
        ;;
    original) # its torch has no wheels for Python 3.12, and no ONNX export
        PYTHONS='3.11 3.10' DEFAULT_VENV=.venv-original
        LINE_REQ=$REQ/original RUNTIME=$REQ/original.txt EXTRAS=(app.txt docs.txt)
        WITH_DET=det # its mmseg imports mmcv's operators, whatever model is used
        ;;
    *) fail "LINE=$LINE: choose maintained or original." ;;
esac
VENV=${VENV:-$DEFAULT_VENV}
PYTHON=${PYTHON:-}
TORCH_INDEX=${TORCH_INDEX:-}
CACHE=${MMDYN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mmdyn}
CPU_INDEX=https://download.pytorch.org/whl/cpu
case $VENV in /*) VENV_DIR=$VENV ;; *) VENV_DIR=$PWD/$VENV ;; esac
PY=$VENV_DIR/bin/python
STATE=$VENV_DIR/.mmdyn
MMCV=$(sed -n '/^[a-z-]*==/p' $LINE_REQ/mmcv.txt)
MMCV_NAME=${MMCV%%==*}
MMCV_WHEEL="${MMCV_NAME//-/_}-${MMCV##*==}-*.whl"
TORCH_VERSION=$(sed -n 's/^torch==//p' $LINE_REQ/torch.txt)
unset PIP_USER # `pip install --user` as a default fails inside a virtual environment

pip() { "$PY" -m pip --disable-pip-version-check "$@"; }
# Without bytecode, which Python writes at the first import of what is used: a third of the time.
install() { pip install --no-compile "$@"; }
# In /, because Python puts the current folder first on its path.
imports() { (cd / && "$PY" -W ignore -c "import $1") >"$STATE/import.log" 2>&1; }

# key WORD...: a hash of the words, or of their contents where they name files.
key() {
    local word
    for word in "$@"; do
        if [ -f "$word" ]; then cat "$word"; else printf '%s\n' "$word"; fi
    done | cksum | tr ' ' '-'
}

# step NAME KEY TEXT: runs step_NAME unless it is recorded with this key.
step() {
    [ "$(cat "$STATE/$1" 2>/dev/null)" != "$2" ] || return 0
    say "$3"
    rm -f "$STATE/$1" # an interrupted step is not done
    "step_$1"
    printf '%s\n' "$2" >"$STATE/$1"
}

step_build() { pip install -q -r $REQ/build.txt; }

has_nvidia_gpu() { [ -e /proc/driver/nvidia/version ] || [ -e /dev/dxg ] || command -v nvidia-smi >/dev/null; }

choose_torch_index() {
    [ -z "$TORCH_INDEX" ] || return 0
    TORCH_INDEX=$(cat "$STATE/torch-index" 2>/dev/null || echo default)
    if [ ! -e "$STATE/torch-index" ] && [ ! -e "$STATE/torch" ] && [ "$(uname -s)" = Linux ] && ! has_nvidia_gpu &&
        pip install -q --dry-run --no-deps --ignore-installed --timeout 5 --retries 0 \
            --index-url $CPU_INDEX "torch==$TORCH_VERSION+cpu" >/dev/null 2>&1; then
        say "no NVIDIA GPU here: taking torch's CPU build (with CUDA: make setup TORCH_INDEX=default)"
        TORCH_INDEX=$CPU_INDEX
    fi
}

step_torch() {
    # To pip, another build of the same version is the same.
    [ "$(cat "$STATE/torch-index" 2>/dev/null || echo default)" = "$TORCH_INDEX" ] || pip uninstall -q -y torch torchvision
    printf '%s\n' "$TORCH_INDEX" >"$STATE/torch-index"
    if [ "$TORCH_INDEX" = default ]; then
        install -c $LINE_REQ/constraints.txt -c $RUNTIME -r $LINE_REQ/torch.txt
    else # what torch itself needs comes from pip's own index in the next step
        install --no-deps --index-url "$TORCH_INDEX" -r $LINE_REQ/torch.txt
    fi
}

step_rest() {
    install -c $LINE_REQ/constraints.txt -c $REQ/build.txt \
        -r $LINE_REQ/torch.txt -r $RUNTIME -r $REQ/dev.txt "${EXTRAS[@]/#/-r$REQ/}"
    # mmdet's imaug asks for opencv-python too, which shares the headless one's folder and needs
    # libGL: the headless one must come last.
    pip install -q --force-reinstall --no-deps -c $LINE_REQ/constraints.txt -c $RUNTIME \
        opencv-python-headless
}

# mmcv with operators if they are there or a wheel is at hand, else without: pure Python, because
# pip's isolated build has no torch. Past pip's cache, which doesn't tell the two apart, nor torch
# versions.
step_mmcv() {
    rm -f "$STATE/det"
    has_operators || install_kept || install_offered || pip install -q --no-deps --no-cache-dir --force-reinstall \
        --no-binary "$MMCV_NAME" --build-constraint $REQ/build.txt "$MMCV"
}

step_mmdyn() {
    PYTHONWARNINGS=ignore pip install -q --no-build-isolation --no-deps -e .
    imports 'cv2, mmengine, mmcv, mmseg, mmdyn' || {
        cat "$STATE/import.log" >&2
        fail 'the environment does not import (see above).' "Try again from nothing: rm -rf $VENV && make setup"
    }
}

# ---- mmcv's operators

# Prints the kind of operators (for a GPU if torch sees one and its compiler is here, or by
# FORCE_CUDA=1) and the name of the folder that keeps their wheel for this Python and torch.
print_kind() {
    "$PY" -W ignore - <<'PYTHON'
import os, platform, shutil, sys, torch

gpu = torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1'
nvcc = shutil.which('nvcc') or os.path.exists(os.environ.get('CUDA_HOME', '/usr/local/cuda') + '/bin/nvcc')
kind = 'gpu' if gpu and (nvcc or torch.version.hip) else 'cpu'
if gpu and kind == 'cpu':
    print('[setup] note: no nvcc here, so mmcv gets operators for the CPU only; detection on the GPU '
          f'needs the CUDA {torch.version.cuda} toolkit', file=sys.stderr)
version = f'cp{sys.version_info[0]}{sys.version_info[1]}'
print(kind, f'{version}-torch{torch.__version__}-{platform.machine()}-{kind}')
PYTHON
}

# True if the pinned mmcv is installed and its operators load with this torch.
has_operators() { imports "mmcv.ops, mmcv as m; assert m.__version__ == '${MMCV##*==}'"; }

install_wheel() { pip install -q --no-deps --force-reinstall "$@" && imports mmcv.ops; }

install_kept() {
    read -r KIND WHEELS < <(print_kind)
    WHEELS=$CACHE/wheels/$WHEELS
    compgen -G "$WHEELS/$MMCV_WHEEL" >/dev/null || return 1
    say "mmcv: taking the wheel built before, $WHEELS"
    # shellcheck disable=SC2086 # a pattern
    install_wheel "$WHEELS"/$MMCV_WHEEL
}

install_offered() {
    pip install -q --no-deps --force-reinstall --no-cache-dir --only-binary :all: "$MMCV" 2>/dev/null || return 1
    if imports mmcv.ops; then
        say 'mmcv: took a prebuilt wheel with operators'
    else
        say "mmcv: the prebuilt wheel's operators do not load: $(tail -n 1 "$STATE/import.log")"
        return 1
    fi
}

# Compiles in a folder that outlives an interruption, so that ninja continues there. One file
# takes up to 2 GB of memory.
build_operators() {
    local work=$WHEELS.build
    mkdir -p "$work"
    if command -v flock >/dev/null; then # another checkout may be compiling the same
        exec 8>"$WHEELS.lock"
        flock -n 8 || { say 'waiting for another set-up that compiles mmcv' && flock 8; }
        compgen -G "$WHEELS/$MMCV_WHEEL" >/dev/null && return 0
        mkdir -p "$work"
    fi
    [ ! -r /proc/meminfo ] || export MAX_JOBS=${MAX_JOBS:-$(awk -v cores="$(getconf _NPROCESSORS_ONLN)" '
        /^MemAvailable/ { n = int($2 / 2e6); print n < 1 ? 1 : n < cores ? n : cores }' /proc/meminfo)}
    export MAX_JOBS=${MAX_JOBS:-2}
    say "compiling, once per machine: about 17 minutes on 2 cores (here: $MAX_JOBS at a time, operators for the $KIND)"
    if [ ! -e "$work/source" ]; then
        rm -rf "$work/source.new" && mkdir "$work/source.new" &&
            pip download -q --no-deps --no-build-isolation --no-cache-dir --no-binary :all: -d "$work" "$MMCV" &&
            tar -xzf "$work"/*.tar.gz --strip-components 1 -C "$work/source.new" &&
            mv "$work/source.new" "$work/source" || fail "mmcv's source could not be downloaded (see above)."
    fi
    if [ "$KIND" = cpu ]; then export CUDA_VISIBLE_DEVICES='' FORCE_CUDA=0; fi
    PATH="$VENV_DIR/bin:$PATH" MMCV_WITH_OPS=1 pip wheel -v --no-deps --no-build-isolation --no-cache-dir \
        -w "$work/out" "$work/source" 2>&1 | tee "$work/build.log" | awk '/^ *\[[0-9]+\/[0-9]+\]/ {
            printf "\r[setup] mmcv: file %s ", $1; fflush() } END { print "" }' || {
        tail -n 40 "$work/build.log" >&2
        fail "compiling mmcv failed; log: $work/build.log" \
            "It needs a C++17 compiler and Python's headers: apt-get install g++ python3-dev" \
            'If a compiler was killed, memory ran out: MAX_JOBS=1 make setup-det'
    }
    mkdir -p "$WHEELS" && mv "$work"/out/*.whl "$WHEELS/" && rm -rf "$work"
}

step_det() {
    has_operators || install_kept || install_offered || {
        build_operators
        install_kept
    } || {
        cat "$STATE/import.log" >&2
        fail "mmcv's operators do not load (see above)." "Compile them again: rm -rf $WHEELS && make setup-det"
    }
}

# ---- the interpreter

# Prints e.g. 3.11; nothing if the command doesn't run, as a pyenv shim that isn't selected.
python_version() { "$1" -I -S -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }
is_supported() { case " $PYTHONS " in *" $1 "*) true ;; *) false ;; esac; }

choose_python() {
    local candidate version without_venv=3.11 candidates=("$PYTHON")
    # shellcheck disable=SC2206 # words
    [ -n "$PYTHON" ] || candidates=(${PYTHONS//3./python3.} python3 python)
    for candidate in "${candidates[@]}"; do
        version=$(python_version "$candidate")
        is_supported "$version" || continue
        # Debian packs ensurepip apart; without it a virtual environment has no pip.
        if "$candidate" -I -c 'import ensurepip, venv' 2>/dev/null; then
            PYTHON=$candidate
            return
        fi
        without_venv=$version
    done
    fail "${PYTHON:+PYTHON=$PYTHON cannot be used: }the $LINE OpenMMLab line needs Python ${PYTHONS// /, } with venv and ensurepip." \
        "On Debian or Ubuntu: apt-get install python$without_venv-venv python$without_venv-dev" \
        'Or name one: make setup PYTHON=/path/to/python3.11'
}

# ---- all of it

if [ -x "$PY" ] && { "$PY" -m pip --version || "$PY" -m ensurepip; } >/dev/null 2>&1; then
    found=$(python_version "$PY")
    [ -z "$PYTHON" ] || [ "$(python_version "$PYTHON")" = "$found" ] || fail \
        "VENV=$VENV was made with Python $found, PYTHON=$PYTHON is another one." \
        "Use another folder (VENV=...) or remove this one: rm -rf $VENV"
    is_supported "$found" && [ "$(cat "$STATE/line" 2>/dev/null || echo "$LINE")" = "$LINE" ] || fail \
        "VENV=$VENV has Python $found and the $(cat "$STATE/line" 2>/dev/null) OpenMMLab line; wanted: $LINE, Python ${PYTHONS// /, }." \
        "Use another folder (make setup LINE=$LINE VENV=.venv-$LINE) or remove this one: rm -rf $VENV"
else
    [ ! -e "$VENV_DIR" ] || [ -e "$VENV_DIR/pyvenv.cfg" ] || [ -z "$(ls -A "$VENV_DIR")" ] ||
        fail "VENV=$VENV exists and is not a virtual environment." 'Give another folder: make setup VENV=.venv'
    choose_python
    say "creating $VENV with $PYTHON"
    "$PYTHON" -m venv --clear "$VENV_DIR"
fi
mkdir -p "$STATE" && printf '%s\n' "$LINE" >"$STATE/line"
trap '[ $? -eq 0 ] || say "stopped; the same command continues from here"' EXIT

step build "$(key $REQ/build.txt)" 'build tools'
choose_torch_index
KEY_REST=$(key "$TORCH_INDEX" $LINE_REQ/torch.txt $RUNTIME $REQ/build.txt $REQ/dev.txt "${EXTRAS[@]/#/$REQ/}" $LINE_REQ/constraints.txt)
step torch "$(key $LINE_REQ/torch.txt "$TORCH_INDEX")" "torch $TORCH_VERSION (about 3 GB with CUDA's libraries)"
step rest "$KEY_REST" 'OpenMMLab packages and everything else'
KEY_MMCV=$(key $LINE_REQ/torch.txt $LINE_REQ/mmcv.txt "$TORCH_INDEX")
step mmcv "$KEY_MMCV" "$MMCV"
# The paths: an environment that was moved or copied points elsewhere.
step mmdyn "$(key setup.py mmdyn/version.py "$PWD" "$VENV_DIR" "$KEY_REST" "$KEY_MMCV")" 'mmdyn itself, editable'
[ "$WITH_DET" != det ] || step det "$KEY_MMCV" "mmcv's operators, for detection"
if [ "$SECONDS" -gt 2 ]; then say "done in $((SECONDS / 60)) min $((SECONDS % 60)) s: source $VENV/bin/activate"; fi
