#!/bin/busybox sh
# Everything that happens inside the lab's machine. The kernel starts this file as /init; it is
# called again with the name of a later stage. What differs from run to run is in the file `settings`.

# The initial RAM disk: reach the host's files.
boot() {
    /bin/busybox --install -s /bin
    export PATH=/bin
    mount -t devtmpfs dev /dev
    exec </dev/console >/dev/console 2>&1
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    # In the order in which they need each other.
    for module in /modules/*.ko; do [ ! -e "$module" ] || insmod "$module"; done
    mount -t virtiofs lab /host 2>/dev/null || mount -t hostfs lab /host
    . /host/job/settings
    root
    # Not reached unless something above failed: the log says what.
    poweroff -f
}

# The machine's root: the host's own files below, a layer in memory above.
root() {
    mount -t tmpfs -o mode=755 layer /layer
    mkdir /layer/upper /layer/work
    # Modules of this kernel stand where the host's would be looked for.
    mount -t overlay -o "lowerdir=/host/modules:/host/root,upperdir=/layer/upper,workdir=/layer/work" root /new || return
    # An overlay's upper layer cannot be on an overlay, and memory has no user.* attributes before Linux 6.6:
    # what tests write to is on a disk.
    disk=/dev/vda
    [ -b $disk ] || disk=/dev/ubda
    mkdir -p /new/scratch
    mount -t ext4 $disk /new/scratch || return
    for folder in tmp home; do
        mkdir /new/scratch/$folder
        mount --bind /new/scratch/$folder /new/$folder
    done
    chmod 1777 /new/tmp
    while read -r number path; do
        mkdir -p "/new$path"
        mount --bind "/host/binds/$number" "/new$path"
    done </host/job/binds
    user
    hostname lab
    ip link set lo up
    # Where udev would have made them.
    mkdir -p /new/dev
    mount --bind /dev /new/dev
    mkdir -p /dev/net
    [ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
    chmod 666 /dev/net/tun
    [ ! -e /dev/fuse ] || chmod 666 /dev/fuse
    mount --bind /proc /new/proc
    mount --bind /sys /new/sys
    mount -t tmpfs -o mode=755,nosuid,nodev run /new/run
    cp -r /host/job /new/run/lab
    cp /bin/busybox /init /new/run/lab
    mkfifo -m 666 /new/run/lab/out /new/run/lab/err /new/run/lab/status
    chroot /new /run/lab/busybox sh /run/lab/init relay &
    if [ "$LAB_INIT" = systemd ]; then
        systemd
        exec switch_root /new /lib/systemd/systemd
    fi
    exec switch_root /new /run/lab/busybox sh /run/lab/init manager
}

# A plain user with a home, a line in every file that is asked for it, and subordinate ids.
user() {
    cd /new/etc
    echo "$LAB_USER:x:$LAB_UID:$LAB_UID::/home/$LAB_USER:/bin/bash" >>passwd
    echo "$LAB_USER:x:$LAB_UID:" >>group
    # Without it systemd's user manager refuses to log him in.
    echo "$LAB_USER:*:::::::" >>shadow
    for file in subuid subgid; do
        [ -z "$LAB_SUBIDS" ] || echo "$LAB_USER:$LAB_SUBIDS" >>$file
    done
    cd /
    mkdir -m 700 "/new/home/$LAB_USER"
    chown "$LAB_UID:$LAB_UID" "/new/home/$LAB_USER"
    # A Python below /root has to be reached; this is the layer in memory, not the host.
    chmod a+x /new/root
}

# Carry the job's output to the host, then its status, and switch off.
relay() {
    cd /run/lab
    b=/run/lab/busybox
    port=$(echo /dev/vport*p1)
    if [ -e "$port" ]; then
        port=${port%1}
    else
        port=/dev/tty
        # Not a byte may be changed on the way.
        for number in 1 2 3; do $b stty raw -echo <$port$number; done
    fi
    $b cat out >"${port}1" &
    outs=$!
    $b cat err >"${port}2" &
    outs="$outs $!"
    # Open for writing too: else the read ends when the first writer closes.
    exec 3<>status
    status=
    until [ "$status" ]; do read -r status <&3; done
    # What the job left in the background may hold them open for ever.
    ($b sleep 3; kill $outs 2>/dev/null) &
    wait $outs
    echo "$status" >"${port}3"
    $b poweroff -f
}

# Process 1 where it is not systemd: cgroup v2 as systemd would have it, then the job, then reaping.
manager() {
    b=/run/lab/busybox
    . /run/lab/settings
    $b mkdir -p /dev/pts /dev/shm /dev/mqueue
    $b mount --make-rshared /
    $b mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
    $b mount -t tmpfs -o mode=1777 shm /dev/shm
    $b mount -t mqueue mqueue /dev/mqueue
    $b mount -t securityfs security /sys/kernel/security 2>/dev/null
    # Only there where SELinux is switched on.
    $b mount -t selinuxfs selinux /sys/fs/selinux 2>/dev/null
    $b mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
    cd /sys/fs/cgroup
    controllers=
    for name in $($b cat cgroup.controllers); do controllers="$controllers +$name"; done
    echo $controllers >cgroup.subtree_control
    $b mkdir -p lab/job
    echo $controllers >lab/cgroup.subtree_control
    become=
    if [ "$LAB_AS" != root ]; then
        $b mkdir -m 700 -p "/run/user/$LAB_UID"
        $b chown "$LAB_UID:$LAB_UID" "/run/user/$LAB_UID"
        become="/usr/bin/setpriv --reuid $LAB_UID --regid $LAB_UID --clear-groups"
    fi
    if [ "$LAB_AS" = user ]; then
        for file in . cgroup.procs cgroup.threads cgroup.subtree_control; do
            $b chown "$LAB_UID:$LAB_UID" "lab/$file" "lab/job/$file"
        done
    fi
    cd /
    # In the foreground of this subshell: what a shell starts with & ignores SIGINT.
    (echo 0 >/sys/fs/cgroup/lab/job/cgroup.procs; exec $become /run/lab/job) || echo 125 >/run/lab/status
    while :; do wait; $b sleep 1; done
}

# Units for systemd: the job as a service, and only what a login needs besides.
systemd() {
    cd /new
    # With it systemd takes itself to be in a container and does not read the kernel's command line.
    rm -rf .dockerenv etc/systemd/system/*.wants
    rm -rf lib/systemd/system-generators lib/systemd/user-generators lib/systemd/system-environment-generators
    units=run/systemd/system
    mkdir -p $units/user@.service.d
    for unit in systemd-udevd systemd-udev-trigger systemd-tmpfiles-setup systemd-tmpfiles-setup-dev \
        systemd-sysusers systemd-hwdb-update systemd-journal-catalog-update systemd-update-done \
        systemd-update-utmp systemd-random-seed systemd-binfmt systemd-firstboot systemd-machine-id-commit \
        systemd-journal-flush systemd-modules-load systemd-sysctl systemd-remount-fs kmod-static-nodes; do
        ln -s /dev/null $units/$unit.service
    done
    printf '[Service]\nDelegate=\nDelegate=%s\n' "$LAB_DELEGATE" >$units/user@.service.d/lab.conf
    printf '%s\n' 'account required pam_permit.so' 'session required pam_systemd.so' >etc/pam.d/lab
    # pam_systemd takes the job out of its service into the scope of a session (of class background), as
    # any login does: the Delegate= of the service counts for root alone.
    start=/run/lab/job
    [ "$LAB_AS" != user ] || start="systemd-run --user --scope --quiet -p Delegate=yes $start"
    {
        printf '[Unit]\nWants=dbus.socket systemd-logind.service\nAfter=dbus.socket systemd-logind.service\n'
        printf '[Service]\nDelegate=yes\nIgnoreSIGPIPE=no\nStandardError=file:/run/lab/err\n'
        [ "$LAB_AS" = root ] || printf 'User=%s\nPAMName=lab\n' "$LAB_USER"
        printf 'ExecStart=%s\n' "$start"
        # A job that could not be started has no status of its own.
        printf "ExecStopPost=/run/lab/busybox sh -c '[ \$\$EXIT_STATUS = 0 ] || echo 125 >/run/lab/status'\n"
    } >$units/lab.service
    cd /
}

case $0 in
    # The kernel hands on what it does not know of its own arguments: they are not stages.
    /init) boot ;;
    *) "$1" ;;
esac
