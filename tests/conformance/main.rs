//! Tests that the simulator's fake kernel behaves like a real one: the same scripts run on both.
//!
//! `world` is the trait that a script runs on, `real` its implementation with sockets, `bench` has
//! the tools of the scripts. Each script submits operations as the core does and states which
//! answers are allowed. It runs on the fake, on loopback TCP and on Unix stream sockets. Where
//! these may differ, the script names the set of answers. `datagrams` and `messages` have their own
//! worlds and scripts.

// The simulator uses more functions of its kernel than the scripts do.
#[allow(dead_code)]
#[path = "../../crates/echo-core/tests/sim/fake/mod.rs"]
mod fake;

mod accept;
mod bench;
mod datagrams;
mod end;
mod handover;
mod identity;
mod messages;
mod preface;
mod probe;
mod real;
mod receive;
mod relay;
mod send;
mod turn;
mod world;

/// Each script as one test in each world.
macro_rules! in_each_world {
    ($($room:ident :: $script:ident),* $(,)?) => {
        mod on_the_fake {
            $(#[test] fn $script() { crate::$room::$script::<crate::world::Fake>(); })*
        }
        mod on_tcp {
            $(#[test] fn $script() { crate::$room::$script::<crate::real::Tcp>(); })*
        }
        mod on_unix {
            $(#[test] fn $script() { crate::$room::$script::<crate::real::Unix>(); })*
        }
    };
}

in_each_world! {
    accept::an_accept_waits_for_a_peer,
    accept::an_accept_tells_what_the_backlog_holds,
    accept::waiting_peers_are_accepted_in_order,
    accept::no_free_file_leaves_the_peer_waiting,
    accept::a_canceled_accept_answers,
    accept::a_cancel_may_lose_the_race,
    accept::a_listener_that_ends_is_emptied,
    accept::an_armed_accept_ends_with_the_listener,
    accept::a_source_is_told_when_asked_for,
    accept::a_source_that_is_gone_is_no_connection,
    accept::a_slot_serves_one_connection_after_another,
    receive::once_ends_with_the_first_bytes,
    receive::a_full_buffer_leaves_the_rest,
    receive::multishot_continues,
    receive::the_end_follows_the_bytes,
    receive::an_end_right_behind_the_bytes_is_seen,
    receive::the_end_comes_alone,
    receive::a_large_buffer_is_taken_when_asked_for,
    receive::an_empty_pool_takes_nothing,
    receive::an_empty_roomy_pool_takes_nothing,
    receive::all_of_a_pool_can_be_had,
    receive::few_buffers_of_many_go_round,
    receive::an_empty_pool_hides_the_end,
    receive::a_buffer_given_back_is_there_for_the_next_receive,
    receive::a_canceled_receive_ends,
    receive::a_cancel_loses_no_bytes,
    receive::a_receive_behind_a_send_is_not_forgotten,
    receive::a_cancel_in_the_same_breath_ends_it,
    receive::waiting_bytes_end_a_turn,
    receive::a_cancel_leaves_the_others,
    receive::a_poll_waits_for_bytes,
    receive::more_wait_for_bulk_than_there_are_large_buffers,
    send::a_send_takes_what_there_is_room_for,
    send::what_a_full_socket_leaves_is_sent_from_the_spill,
    send::a_finished_peer_is_waited_for_without_spinning,
    send::a_second_stall_is_waited_for,
    send::a_cancel_submitted_together_stops_a_send,
    send::spilled_chunks_keep_their_order,
    send::two_connections_do_not_mix,
    send::an_answer_that_is_not_requested_still_arrives,
    send::a_short_send_is_always_reported,
    send::held_bytes_wait_for_room,
    relay::bytes_are_relayed_when_they_come,
    relay::a_relay_takes_no_more_than_asked_for,
    relay::a_relay_takes_no_more_than_there_is_room_for,
    relay::a_relay_ends_with_the_stream,
    relay::a_relay_can_be_stopped,
    relay::discarded_bytes_are_gone,
    relay::a_reset_ends_a_relay,
    relay::a_shutdown_of_both_ends_a_relay,
    handover::a_canceled_send_loses_no_bytes,
    handover::what_one_kernel_releases_another_imports,
    handover::the_core_hands_over_in_mid_transfer,
    preface::a_header_is_taken_and_no_byte_behind_it,
    preface::a_header_comes_in_pieces,
    preface::a_header_may_announce_no_client,
    preface::an_invalid_header_is_reported,
    preface::a_header_has_a_limit,
    preface::an_end_before_the_header_is_reported,
    preface::a_look_for_a_header_can_be_stopped,
    preface::a_shutdown_of_both_ends_a_look,
    preface::a_half_read_header_is_handed_over,
    preface::the_core_echoes_behind_a_header,
    identity::an_identity_comes_before_the_echo,
    identity::an_end_follows_an_identity,
    identity::an_identity_that_nobody_takes_is_told_of,
    probe::a_silent_peer_that_is_there_answers,
    probe::the_end_of_a_probe_is_told_behind_a_close,
    end::a_reset_ends_a_receive,
    end::a_reset_ends_a_waiting_send,
    end::a_dead_connection_is_reported_once,
    end::a_shutdown_of_both_ends_a_receive,
    end::a_shutdown_of_both_ends_a_receive_behind_a_send,
    end::a_shutdown_of_both_ends_a_waiting_send,
    end::a_shutdown_of_writing_leaves_the_receive,
    end::a_close_is_seen_after_the_last_byte,
    end::a_close_with_unread_input_resets,
    end::an_abort_resets,
    end::a_peer_that_closed_does_not_take_more,
    turn::a_turn_ends_at_its_deadline,
    turn::a_turn_in_the_past_does_not_wait,
    turn::a_turn_can_be_woken,
    turn::a_near_deadline_holds_after_a_far_one,
    turn::the_core_echoes_and_drains,
}

/// The same for datagrams.
macro_rules! in_each_datagram_world {
    ($($script:ident),* $(,)?) => {
        mod datagrams_on_the_fake {
            use crate::datagrams::{scripts, world::Fake};
            $(#[test] fn $script() { scripts::$script::<Fake>(); })*
        }
        mod datagrams_on_an_address {
            use crate::datagrams::{scripts, world::Bound};
            $(#[test] fn $script() { scripts::$script::<Bound>(); })*
        }
        mod datagrams_on_all_of_ipv4 {
            use crate::datagrams::{scripts, world::Wildcard};
            $(#[test] fn $script() { scripts::$script::<Wildcard>(); })*
        }
        mod datagrams_on_all_addresses {
            use crate::datagrams::{scripts, world::DualStack};
            $(#[test] fn $script() { scripts::$script::<DualStack>(); })*
        }
    };
}

in_each_datagram_world! {
    a_datagram_comes_back_from_where_it_went,
    an_empty_datagram_ends_the_receive,
    the_longest_datagram_comes_back,
    a_burst_comes_back_as_it_was,
    a_burst_can_be_sent_in_pieces,
    more_datagrams_than_buffers_wait_in_order,
    several_are_answered_in_one_turn,
    datagrams_after_a_cancel_wait,
    a_cancel_loses_no_datagram,
    a_closed_socket_is_another_process_s,
    a_reply_that_is_too_long_fails_alone,
    a_datagram_without_all_control_messages_says_so,
    an_identity_answers_if_there_is_room_for_it,
    the_core_answers_and_drains,
}

/// The same for messages of seqpacket connections.
macro_rules! in_each_message_world {
    ($($script:ident),* $(,)?) => {
        mod messages_on_the_fake {
            use crate::messages::{scripts, world::Fake};
            $(#[test] fn $script() { scripts::$script::<Fake>(); })*
        }
        mod messages_on_a_seqpacket_socket {
            use crate::messages::{scripts, world::Real};
            $(#[test] fn $script() { scripts::$script::<Real>(); })*
        }
    };
}

in_each_message_world! {
    each_message_comes_back_as_one,
    a_limit_does_not_cut_a_message,
    an_empty_message_is_not_the_end,
    the_longest_message_comes_back,
    a_longer_message_is_reported_and_not_truncated,
    messages_wait_for_room,
    discarded_messages_are_gone,
    messages_are_left_to_the_next_process,
    the_core_echoes_messages,
}
