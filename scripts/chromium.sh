#!/bin/sh
# Chromium and its driver, Debian's packages, for the tests in tests/browser: installed where they
# are missing and that can be done without a question. Without them those tests are skipped, so
# this never fails.
packages="chromium chromium-driver"

there() {
	[ -x /usr/bin/chromium ] && [ -x /usr/bin/chromedriver ]
}

apt() {
	# Neither a network that does not answer nor another apt is waited for long.
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y \
		-o Acquire::Retries=1 -o Acquire::http::Timeout=30 -o DPkg::Lock::Timeout=60 \
		"$@" </dev/null >/dev/null 2>&1
}

there && exit 0
as_root=
if [ "$(id -u)" -ne 0 ]; then
	as_root="sudo -n"
fi
if command -v apt-get >/dev/null && $as_root true 2>/dev/null; then
	echo "Installing $packages with apt-get for the tests in tests/browser ..."
	# Its lists of packages may be missing, or out of date.
	# shellcheck disable=SC2086
	apt install --no-install-recommends $packages ||
		{ apt update && apt install --no-install-recommends $packages; }
fi
there || echo "No Chromium: tests/browser is skipped (apt-get install $packages, on Debian)."
exit 0
