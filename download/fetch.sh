# Functions the download scripts share (sourced, not run). Works with the bash 3.2 of macOS.
#
# Caller sets: TARGET (folder), ALGORITHM (md5 or sha256), SUMS (lines "checksum  name"),
# REMOVE (1: delete archives once extracted). Files in TARGET:
#   NAME.part        unfinished download; the next run resumes it
#   NAME             complete archive that passed its check
#   NAME.bad         complete download that failed its check; the next run fetches it anew
#   .NAME.extracted  mark: this archive was unpacked completely

die() {
    echo "${0##*/}: $*" >&2
    exit 2
}

say() { echo "$*" >&2; }

have() { command -v "$1" >/dev/null 2>&1; }

# checksum FILE
checksum() {
    python3 - "$ALGORITHM" "$1" <<'PY'
import hashlib, sys
digest = hashlib.new(sys.argv[1])
with open(sys.argv[2], "rb") as file:
    while block := file.read(1 << 22):
        digest.update(block)
print(digest.hexdigest())
PY
}

# is_sound FILE: reads the whole archive, for those no checksum is known of
is_sound() {
    python3 - "$1" 2>/dev/null <<'PY'
import sys, tarfile, zipfile
path = sys.argv[1]
if zipfile.is_zipfile(path):
    sys.exit(zipfile.ZipFile(path).testzip() is not None)
with tarfile.open(path) as archive:
    archive.getmembers()
PY
}

# curl_to PART URL [OPTION...]: prints the HTTP status
curl_to() {
    local part=$1 url=$2 progress=--silent
    shift 2
    [ -t 2 ] && progress=--progress-bar
    curl --location --fail --connect-timeout 30 "$progress" --output "$part" \
        --write-out '%{http_code}' "$@" "$url"
}

# download URL PART: continues PART
download() {
    local url=$1 part=$2 status=0 code=unknown refused progress=--quiet
    if have curl; then
        code=$(curl_to "$part" "$url" --retry 3 --continue-at -) || status=$?
        [ "$code" = 416 ] && status=0 # nothing is left to fetch; the check decides
        if [ "$status" = 33 ]; then   # this server cannot resume
            status=0
            code=$(curl_to "$part" "$url") || status=$?
        fi
        [ "$status" = 22 ] && refused=1 || refused=0
    elif have wget; then
        [ -t 2 ] && progress=--show-progress
        wget --continue --tries=3 --timeout=30 --quiet "$progress" --output-document="$part" \
            "$url" || status=$?
        [ "$status" = 8 ] && refused=1 || refused=0
    else
        die "curl or wget is needed; install one of them"
    fi
    [ -s "$part" ] || rm -f "$part"
    if [ "$refused" = 1 ]; then
        die "$url: the server refused (status $code); set another base URL, see --help"
    fi
    [ "$status" = 0 ] || die "$url: no connection, or it broke off; run this again to resume"
}

# verify FILE NAME
verify() {
    local file=$1 name=$2 expected found
    expected=$(awk -v name="$name" '$2 == name || $2 == "*" name { print $1 }' <<<"$SUMS")
    if [ -n "$expected" ]; then
        say "checking the $ALGORITHM sum of $name"
        found=$(checksum "$file") || die "python3 cannot read $file; does python3 run?"
        [ "$found" = "$expected" ] && return
        mv -f "$file" "$TARGET/$name.bad"
        die "$name has $ALGORITHM $found, expected $expected; it is kept as" \
            "$TARGET/$name.bad; run this command again to download it again"
    fi
    say "testing $name (no checksum is known)"
    is_sound "$file" && return
    mv -f "$file" "$TARGET/$name.bad"
    die "$name is not a complete archive; it is kept as $TARGET/$name.bad; run this command again" \
        "to download it again"
}

# extract FILE
extract() {
    case $1 in
        *.zip)
            if have unzip; then
                unzip -q -o "$1" -d "$TARGET"
            else
                python3 -m zipfile -e "$1" "$TARGET"
            fi
            ;;
        *)
            if have tar; then
                tar -xf "$1" -C "$TARGET" --no-same-owner
            else
                python3 -m tarfile -e "$1" "$TARGET"
            fi
            ;;
    esac || die "cannot extract $1 into $TARGET; is the disk full?"
}

# get URL FOLDER: everything from the address to the extracted FOLDER (below TARGET)
get() {
    local url=$1 folder=$2 name=${1##*/}
    local file=$TARGET/$name mark=$TARGET/.$name.extracted
    if [ -e "$mark" ] && [ -d "$TARGET/$folder" ]; then
        say "$name: already extracted"
        return
    fi
    if [ ! -e "$file" ]; then
        say "fetching $url"
        download "$url" "$file.part"
        verify "$file.part" "$name"
        mv "$file.part" "$file"
    else
        verify "$file" "$name" # perhaps put there by hand
    fi
    say "extracting $name"
    extract "$file"
    [ -d "$TARGET/$folder" ] || die "$name holds no folder $folder; is it the right archive?"
    touch "$mark"
    if [ "$REMOVE" = 1 ]; then
        rm -f "$file"
    fi
}

# read_arguments "$@": --help, --only, --remove-archives, TARGET; PARTS are the possible parts
read_arguments() {
    local part
    ONLY=$PARTS REMOVE=0
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help) usage && exit 0 ;;
            --remove-archives) REMOVE=1 ;;
            --only)
                [ $# -gt 1 ] || die "--only needs a list of $PARTS"
                ONLY=$2
                shift
                ;;
            --only=*) ONLY=${1#--only=} ;;
            -*) die "unknown option $1; see --help" ;;
            *) TARGET=$1 ;;
        esac
        shift
    done
    ONLY=${ONLY// /,}
    [ -n "${ONLY//,/}" ] || die "--only needs a list of $PARTS"
    for part in ${ONLY//,/ }; do
        wanted "$part" "$PARTS" || die "--only takes a list of $PARTS, got $part"
    done
    have python3 || die "python3 is needed to check the archives; install it"
    mkdir -p "$TARGET" 2>/dev/null || die "cannot make the folder $TARGET; name another one"
    TARGET=$(cd "$TARGET" && pwd)
}

# wanted PART [LIST]: is PART in the comma-separated LIST (default: what --only chose)?
wanted() { [[ ,${2:-$ONLY}, == *,$1,* ]]; }
