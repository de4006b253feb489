#!/usr/bin/env bash
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$HERE/fetch.sh"

usage() {
    cat <<'TEXT'
Download COCO 2017 and unpack it: train2017/, val2017/, annotations/.

    download/download_coco.sh [--only LIST] [--remove-archives] [TARGET]

    TARGET             folder; default: data/coco of this repository
    --only LIST        parts, comma-separated: train (19.3 GB), val (0.8 GB), annotations (0.25 GB);
                       default: all three. `--only val,annotations` suffices for evaluation
    --remove-archives  delete each archive once it is unpacked (they take as much room again)

Run it again after an interruption: downloads resume, finished parts are skipped. Archives are
checked by their sha256 sums; one that fails is kept as NAME.bad.

    COCO_BASE_URL      default http://images.cocodataset.org; below it lie zips/ and annotations/
    COCO_SHA256_FILE   file of lines "sum  name" instead of the built-in sums; archives that are
                       not in it are only tested for being whole
TEXT
}

# Checksums: TensorFlow Datasets, url_checksums/coco.txt
SUMS="\
69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929  train2017.zip
4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05  val2017.zip
113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268  annotations_trainval2017.zip"
ALGORITHM=sha256
TARGET=$(dirname "$HERE")/data/coco
PARTS=train,val,annotations
BASE=${COCO_BASE_URL:-http://images.cocodataset.org}
BASE=${BASE%/}

read_arguments "$@"
if [ -n "${COCO_SHA256_FILE:-}" ]; then
    SUMS=$(cat "$COCO_SHA256_FILE" 2>/dev/null) || die "no file $COCO_SHA256_FILE (COCO_SHA256_FILE)"
fi
if wanted annotations; then get "$BASE/annotations/annotations_trainval2017.zip" annotations; fi
if wanted val; then get "$BASE/zips/val2017.zip" val2017; fi
if wanted train; then get "$BASE/zips/train2017.zip" train2017; fi
echo "COCO 2017 ($ONLY) is in $TARGET; use it with --set coco_root=$TARGET"
