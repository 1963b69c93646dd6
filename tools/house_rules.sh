#!/usr/bin/env bash
# Rules of the repository that no linter knows. Looks at everything git would track and prints each offence.
set -euo pipefail
cd "$(dirname "$0")/.."

failed=0

# Print the lines on stdin under the rule $1, if there are any.
report() {
  local lines
  lines=$(cat)
  [[ -n $lines ]] || return 0
  printf '%s:\n%s\n' "$1" "$lines"
  failed=1
}

# The files that git would track under the given paths, ended by NUL: never what a run left there (caches, builds).
tracked() {
  git ls-files --cached --others --exclude-standard -z -- "$@"
}

search() {
  git grep --no-index --exclude-standard -I -n -E "$@" || [[ $? == 1 ]]
}

# Which registry pip talks to is up to the machine. The one exception is PyTorch's, the only home of torch's CPU builds.
# (The brackets keep this line from finding itself.)
report "Names a package registry" < <(search 'pypi[.]org|python[h]osted|index[-_]url[ =]+"?[a-z]+:/')
report "Names a folder of somebody's machine" < <(search '(^|[^[:alnum:]_.-])/(root|work|Users|home)/')
report "Imports a test file (what tests share is in tests/support)" < <(search "^ *(from|import) tests[.]([a-z_]+[.])*test_" -- tests)
report "Holds a conflict marker" < <(search '^(<<<<<<<|>>>>>>>)( |$)')
report "Is larger than 6 MB" < <(tracked | xargs -0 -r -I{} find {} -maxdepth 0 -size +6M)
report "Is a script that is not executable" < <(tracked tools .ci | xargs -0 -r -I{} find {} -maxdepth 0 ! -perm -u+x)

exit "$failed"
