#!/bin/busybox sh
# The only program of a Linux guest: tests the machine that it is on, prints KTAP, and then does what it is told on the serial
# console. What the machine is to have stands on the kernel's command line.
/bin/busybox mkdir -p /proc /sys
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
asked() { sed -n "s/.* test\.$1=\([0-9]*\).*/\1/p" /proc/cmdline; }
result() { # number, name, and a command that fails where the test does
    number=$1 name=$2
    shift 2
    if "$@"; then echo "ok $number $name"; else echo "not ok $number $name"; fi
}
cpus=$(grep -c ^processor /proc/cpuinfo)
mib=$(($(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo) / 1024))

echo "KTAP version 1"
echo "1..6"
result 1 linux.cpus [ "$cpus" = "$(asked cpus)" ]
echo "  KTAP version 1"
echo "  1..2"
echo "  $(result 1 at_most [ "$mib" -le "$(asked mib)" ])"
echo "  $(result 2 most_of_it [ "$mib" -ge "$(($(asked mib) * 3 / 4))" ])"
result 2 linux.memory true
result 3 linux.nfit [ -s /sys/firmware/acpi/tables/NFIT ]
echo "ok 4 linux.modules # SKIP there are none in this file system"
result 5 linux.fails false
echo "# on purpose"
result 6 linux.first_process [ $$ = 1 ]

while printf 'linux# ' && read -r line; do eval "$line"; done
