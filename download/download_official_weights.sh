#!/usr/bin/env bash
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$HERE")
source "$HERE/fetch.sh"

usage() {
    cat <<'TEXT'
Download a checkpoint of the official TensorFlow implementation and convert it to NAME.safetensors.

    download/download_official_weights.sh [--remove-checkpoint] NAME [TARGET]

    NAME                 see below; what each scores stands in weights/README.md
                         obj365_{resnet,resnetc,vit_b,vit_l}_640         Objects365, to start from
                         coco_{resnet,resnetc,vit_b,vit_l}_{640,1024,1333}   COCO detection
                         multi_vit_b_{640,1024}                          all four tasks
    TARGET               folder for the weight file; default: weights of this repository
    --remove-checkpoint  delete the checkpoint (TARGET/NAME/) once it is converted

Run it again after an interruption: downloads resume, finished parts are skipped. A checkpoint
carries checksums of everything in it, which the conversion checks.

    OFFICIAL_BASE_URL    default https://storage.googleapis.com/pix2seq
    PYTHON               interpreter with PyTorch; default: .venv/bin/python of this repository,
                         else python3
TEXT
}

BASE=${OFFICIAL_BASE_URL:-https://storage.googleapis.com/pix2seq}
BASE=${BASE%/}
TEXT_MODEL=c4_en_32k_spm.model

# describe NAME: sets FOLDER (on the server) and OPTIONS (of the converter)
describe() {
    local kind=${1%%_*} model size=${1##*_} variant
    model=${1#*_} model=${model%_*}
    case $model in
        resnet | vit_b | vit_l) variant=${model/_/-} ;;
        resnetc) variant=resnet-c ;;
        *) return 1 ;;
    esac
    case $kind/$model/$size in
        obj365/*/640) FOLDER=obj365_pretrain/${model}_640x640_b256_s400k ;;
        coco/*/640 | coco/*/1024 | coco/*/1333)
            FOLDER=coco_det_finetune/${model}_${size}x${size}
            ;;
        multi/vit_b/640 | multi/vit_b/1024) FOLDER=multi_task/ckpt/${model}_${size}x${size} ;;
        *) return 1 ;;
    esac
    OPTIONS=(--variant "$variant" --image-size "$size")
    case $kind in
        obj365) OPTIONS+=(--num-classes 365) ;;
        multi) OPTIONS+=(--task multi --text-model "$TARGET/$TEXT_MODEL") ;;
    esac
}

# fetch URL FILE
fetch() {
    if [ -e "$2" ]; then
        say "${2##*/}: already there"
        return
    fi
    say "fetching $1"
    download "$1" "$2.part"
    mv "$2.part" "$2"
}

# has PACKAGE: whether the interpreter has it
has() {
    "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)' \
        "$1" 2>/dev/null
}

NAME= TARGET= REMOVE=0
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --remove-checkpoint) REMOVE=1 ;;
        -*) die "unknown option $1; see --help" ;;
        *) if [ -z "$NAME" ]; then NAME=$1; else TARGET=$1; fi ;;
    esac
    shift
done
[ -n "$NAME" ] || die "name the weights, e.g. coco_vit_b_640; see --help"
TARGET=${TARGET:-$ROOT/weights}
describe "$NAME" || die "no official weights $NAME; see --help"
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
have "$PYTHON" || PYTHON=python3
has torch || die "$PYTHON has no PyTorch; run make install, or set PYTHON to one that has it"
mkdir -p "$TARGET/$NAME" 2>/dev/null || die "cannot make the folder $TARGET; name another one"
TARGET=$(cd "$TARGET" && pwd)
describe "$NAME" # now with the whole path

case $NAME in
    multi_*)
        has sentencepiece ||
            die "captions need one more package: $PYTHON -m pip install sentencepiece"
        fetch "$BASE/multi_task/data/$TEXT_MODEL" "$TARGET/$TEXT_MODEL"
        ;;
esac
if [ -e "$TARGET/$NAME.safetensors" ] && [ -e "$TARGET/$NAME.safetensors.sha256" ]; then
    say "$NAME.safetensors: already converted"
else
    fetch "$BASE/$FOLDER/checkpoint" "$TARGET/$NAME/checkpoint"
    for _ in index data; do # the first file says which others there are
        files=$("$PYTHON" "$HERE/tf_checkpoint.py" "$TARGET/$NAME") || exit 2
        for file in $files; do
            [ -e "$TARGET/$NAME/$file" ] || fetch "$BASE/$FOLDER/$file" "$TARGET/$NAME/$file"
        done
    done
    say "converting $NAME"
    "$PYTHON" "$HERE/convert_official_weights.py" "$TARGET/$NAME" "$TARGET/$NAME.safetensors" \
        "${OPTIONS[@]}" || exit 2
fi
if [ "$REMOVE" = 1 ]; then
    rm -rf "${TARGET:?}/$NAME"
fi
echo "$NAME is in $TARGET/$NAME.safetensors; use it with --weights $TARGET/$NAME.safetensors"
