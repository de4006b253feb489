#!/usr/bin/env bash
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$HERE/fetch.sh"

usage() {
    cat <<'TEXT'
Download Pascal VOC 2007 and 2012 and unpack them: VOCdevkit/VOC2007/, VOCdevkit/VOC2012/.

    download/download_voc.sh [--only LIST] [--remove-archives] [TARGET]

    TARGET             folder that will hold VOCdevkit/; default: data/VOC of this repository
    --only LIST        parts, comma-separated: 2007-trainval (0.46 GB), 2007-test (0.45 GB),
                       2012-trainval (2.0 GB); default: all three
    --remove-archives  delete each archive once it is unpacked

Run it again after an interruption: downloads resume, finished parts are skipped. Archives are
checked by their md5 sums; one that fails is kept as NAME.bad.

    VOC_BASE_URL       default https://thor.robots.ox.ac.uk/pascal/VOC; below it lie voc2007/ and
                       voc2012/ (another copy: http://host.robots.ox.ac.uk/pascal/VOC)
    VOC_MD5_FILE       file of lines "sum  name" instead of the built-in sums; archives that are
                       not in it are only tested for being whole
TEXT
}

# Checksums: torchvision, datasets/voc.py
SUMS="\
c52e279531787c972589f7e41ab4ae64  VOCtrainval_06-Nov-2007.tar
b6e924de25625d8de591ea690078ad9f  VOCtest_06-Nov-2007.tar
6cd6e144f989b92b3379bac3b3de84fd  VOCtrainval_11-May-2012.tar"
ALGORITHM=md5
TARGET=$(dirname "$HERE")/data/VOC
PARTS=2007-trainval,2007-test,2012-trainval
BASE=${VOC_BASE_URL:-https://thor.robots.ox.ac.uk/pascal/VOC}
BASE=${BASE%/}

read_arguments "$@"
if [ -n "${VOC_MD5_FILE:-}" ]; then
    SUMS=$(cat "$VOC_MD5_FILE" 2>/dev/null) || die "no file $VOC_MD5_FILE (VOC_MD5_FILE)"
fi
if wanted 2007-trainval; then get "$BASE/voc2007/VOCtrainval_06-Nov-2007.tar" VOCdevkit/VOC2007; fi
if wanted 2007-test; then get "$BASE/voc2007/VOCtest_06-Nov-2007.tar" VOCdevkit/VOC2007; fi
if wanted 2012-trainval; then get "$BASE/voc2012/VOCtrainval_11-May-2012.tar" VOCdevkit/VOC2012; fi
echo "Pascal VOC ($ONLY) is in $TARGET; use it with --set voc_root=$TARGET"
