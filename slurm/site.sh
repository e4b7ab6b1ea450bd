# shellcheck shell=bash
# Sourced by the batch scripts: finds and sources the site's file, which sets LAUNCH.
#   SITE            a file of env/ (generic, the default), or a path with a slash to one of your own
#   SLURM_SCRIPTS   this folder, where jobs are not submitted from the checkout that it is in

SLURM_SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
export SLURM_SCRIPTS
case ${SITE:=generic} in
  */*) site_file=$SITE ;;
  *) site_file=$SLURM_SCRIPTS/env/$SITE.sh ;;
esac
if ! [ -r "$site_file" ]; then
  echo "SITE=$SITE: cannot read $site_file on $(hostname)" >&2
  exit 2
fi
# shellcheck source=slurm/env/generic.sh
source "$site_file"
