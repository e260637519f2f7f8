"""
The table of protections in docs/security.md, and the tests that show each of them.

``python tests/kernel/probe/table.py`` writes it anew; a test compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sandboxlib.plan.protections import PROTECTIONS

CHECKOUT = Path(__file__).parents[3]
PAGE = CHECKOUT / "docs" / "security.md"
BEGIN, END = "<!-- table: tests/kernel/probe/table.py -->\n", "<!-- end of table -->\n"

#: Each row's tests, in tests/kernel.
EVIDENCE: dict[str, tuple[str, ...]] = {
    "namespaces": (
        "test_every_namespace_is_new",
        "test_services_memory_and_processes_of_the_host_are_out_of_reach",
        "test_shared_memory_and_queues_of_the_host_are_out_of_reach",
        "test_clocks_are_the_sandboxs_own",
    ),
    "unmapped-ids": (
        "test_root_inside_is_nobody_outside",
        "test_the_hosts_root_is_not_in_the_maps",
        "test_two_sandboxes_share_no_id",
    ),
    "no-groups": ("test_groups_of_root_stay_with_the_program", "test_no_group_of_the_callers_remains"),
    "no-capabilities": (
        "test_all_capability_sets_are_empty",
        "test_without_its_row_the_capabilities_are_there",
        "test_of_capabilities_only_those_asked_for_are_there",
    ),
    "no-new-privileges": (
        "test_no_new_privileges_is_set",
        "test_without_its_row_no_new_privileges_is_not_set",
        "test_a_set_user_id_program_of_the_host_has_no_effect",
    ),
    "no-nested-userns": ("test_there_is_no_user_namespace_within",),
    "close-descriptors": (
        "test_descriptors_that_the_program_forgot_do_not_go_along",
        "test_pid_1_keeps_two_descriptors",
        "test_a_program_whose_standard_descriptors_are_closed_can_use_sandboxes",
    ),
    "private-stdio": (
        "test_a_file_that_is_read_cannot_be_opened_for_writing",
        "test_without_its_row_a_file_that_is_read_can_be_written",
    ),
    "clean-environment": ("test_the_programs_environment_stays_with_it", "test_the_environment_is_a_new_one"),
    "new-session": (
        "test_a_command_leads_a_session_without_a_terminal",
        "test_input_cannot_be_pushed_into_the_programs_terminal",
        "test_pid_1_has_no_session_and_no_terminal_of_the_callers",
    ),
    "new-keyring": ("test_the_programs_keys_stay_with_it",),
    "hidden-init": (
        "test_pid_1_in_sight_tells_nothing",
        "test_pid_1_is_protected_without_the_filter_too",
        "test_pid_1_of_roots_is_out_of_reach_whatever_rights_are_inside",
        "test_a_command_cannot_be_looked_into_before_its_program_runs",
    ),
    "sealed-launcher": ("test_the_launcher_is_a_sealed_copy_in_memory",),
    "checked-cwd": (
        "test_a_working_directory_cannot_lead_out_through_a_descriptor",
        "test_a_working_directory_through_a_link_stays_inside",
    ),
    "reset-signals": ("test_blocked_and_ignored_signals_stay_with_the_program",),
    "rlimits": ("test_resource_limits_are_not_the_programs",),
    "pivot-root": (
        "test_chroot_and_its_way_out_end_in_the_sandbox",
        "test_the_hosts_tree_is_mounted_nowhere_inside",
    ),
    "private-mounts": ("test_mounts_go_neither_in_nor_out",),
    "read-only-root": ("test_the_root_is_read_only", "test_a_read_only_share_is_read_only_all_the_way_down"),
    "sized-tmpfs": ("test_writable_folders_have_a_size_and_a_number_of_files", "test_files_in_memory_count"),
    "nosuid-nodev": (
        "test_every_mount_is_nosuid_and_nodev",
        "test_a_set_user_id_program_of_the_host_has_no_effect",
        "test_neither_set_id_files_nor_devices_can_be_made_on_a_shared_folder",
    ),
    "mounts-by-descriptor": (
        "test_a_mount_point_that_changes_meanwhile_leads_nowhere",
        "test_a_hostile_root_does_not_reach_the_host",
        "test_a_link_to_a_mount_point_is_followed_inside_only",
    ),
    "minimal-dev": ("test_dev_has_nothing_but_the_harmless_nodes",),
    "proc-subset": (
        "test_proc_shows_nothing_but_processes",
        "test_in_the_whole_of_proc_the_hosts_files_are_masked",
    ),
    "hidden-processes": ("test_pid_1_is_not_in_sight",),
    "masked-paths": (
        "test_in_the_whole_of_proc_the_hosts_files_are_masked",
        "test_without_the_masks_the_hosts_files_can_be_read",
    ),
    "no-sysfs": ("test_there_is_no_sysfs_and_no_cgroup_file_system",),
    "seccomp": (
        "test_dangerous_calls_are_refused",
        "test_without_the_filter_each_of_them_is_answered_otherwise",
        "test_the_32_bit_entry_is_death",
        "test_commands_of_all_kinds_are_filtered",
    ),
    "own-loopback": (
        "test_the_network_is_its_own_loopback",
        "test_services_memory_and_processes_of_the_host_are_out_of_reach",
    ),
    "ceilings": (
        "test_without_being_asked_processes_are_limited",
        "test_without_being_asked_memory_is_limited",
    ),
    "own-cgroup": (
        "test_its_cgroup_is_the_top_of_what_it_sees",
        "test_limits_can_neither_be_written_nor_left",
    ),
    "no-core-dumps": (
        "test_a_crash_leaves_no_core_file",
        "test_a_core_file_has_to_be_asked_for",
        "test_a_crash_does_not_start_the_hosts_crash_handler",
    ),
    "dies-with-program": (
        "test_sandboxes_die_with_their_program",
        "test_a_frozen_sandbox_dies_with_its_program",
    ),
    "nothing-left": (
        "test_a_program_killed_at_any_moment_leaves_nothing",
        "test_two_thousand_one_after_another_leave_nothing_and_cost_the_same",
    ),
}


def table() -> str:
    """The table as Markdown."""
    rows = ["| protection | what it is against | can be switched off |", "|---|---|---|"]
    rows += [f"| `{row.name}` | {row.reason} | {'no' if row.fixed else 'yes'} |" for row in PROTECTIONS]
    return "\n".join(rows) + "\n"


def page(text: str) -> str:
    """The page with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    sys.exit(PAGE.write_text(page(PAGE.read_text())) == 0)
