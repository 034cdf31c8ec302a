#!/usr/bin/env escript
%% Runs schedules through OTP's own supervisor and prints, after each step, what was answered, in which order workers
%% were started and stopped, and what the tree looks like. The Rust side prints the same of its core; both must agree.
%%
%% Usage: oracle.escript FILE, where FILE holds terms {schedule, Id, Group, Steps}:
%%   Group  = {Strategy, Intensity, PeriodSeconds, AutoShutdown, [Child]}
%%   Child  = {worker, Name, Restart, Significant, Manner} | {group, Name, Restart, Significant, Group}
%%   Manner = obedient | stubborn | brutal
%%   Step   = {fail, Path, Count} | {sleep, Milliseconds} | {batch, GroupPath, [Action]}
%%   Action = {crash, Name, Reason} | {start, Child} | {terminate, Name} | {restart, Name} | {delete, Name}
-mode(compile).
-define(CROWD, 100).
-export([main/1, init/1, start_worker/3, start_group/3]).

main([File]) ->
    logger:set_primary_config(level, none),
    {ok, Schedules} = file:consult(File),
    %% Those that wait measure time, so they must not be kept from running by a crowd of those that do not.
    {Waiting, Busy} = lists:partition(fun waits/1, Schedules),
    Patient = [start(Schedule) || Schedule <- Waiting],
    lists:foreach(fun print/1, crowd(Busy, ?CROWD, [])),
    lists:foreach(fun print/1, Patient).

waits({schedule, _, _, Steps}) -> lists:keymember(sleep, 1, Steps).

%% Runs schedules, so many at a time.
crowd([], _, Running) -> lists:reverse(Running);
crowd([Schedule | Rest], 0, Running) ->
    [Oldest | Younger] = lists:reverse(Running),
    print(Oldest),
    crowd([Schedule | Rest], 1, lists:reverse(Younger));
crowd([Schedule | Rest], Free, Running) -> crowd(Rest, Free - 1, [start(Schedule) | Running]).

start(Schedule) ->
    Self = self(),
    spawn_monitor(fun() -> Self ! {done, self(), run(Schedule)} end).

print({Pid, Monitor}) ->
    io:put_chars(
        receive
            {done, Pid, Lines} -> Lines;
            {'DOWN', Monitor, process, Pid, Reason} when Reason =/= normal ->
                io_lib:format("oracle failed: ~p~n", [Reason])
        end).

%% One schedule

run({schedule, Id, Group, Steps}) ->
    process_flag(trap_exit, true),
    Table = ets:new(world, [public, ordered_set]),
    ets:insert(Table, {count, 0}),
    Root = case start_group(Table, [], Group) of
        {ok, Pid} -> Pid;
        {error, _} -> none
    end,
    First = line(Id, 0, [], Table, settled(Root)),
    Lines = [step(Id, Number, Step, Table, Root) || {Number, Step} <- lists:zip(lists:seq(1, length(Steps)), Steps)],
    stop(Root),
    [First, Lines, line(Id, last, [], Table, "over")].

stop(none) -> ok;
stop(Root) ->
    Monitor = monitor(process, Root),
    exit(Root, shutdown),
    receive {'DOWN', Monitor, process, Root, _} -> ok end.

step(Id, Number, {fail, Path, Count}, Table, Root) ->
    ets:insert(Table, {{fail, Path}, Count}),
    line(Id, Number, [], Table, settled(Root));
step(Id, Number, {sleep, Milliseconds}, Table, Root) ->
    timer:sleep(Milliseconds),
    line(Id, Number, [], Table, settled(Root));
step(Id, Number, {batch, Path, Actions}, Table, Root) ->
    Answers = case find(Root, Path) of
        none -> [gone || Action <- Actions, element(1, Action) =/= crash];
        Group -> batch(Table, Path, Group, Actions)
    end,
    line(Id, Number, Answers, Table, settled(Root)).

%% All actions are in the mailbox before the supervisor looks at the first.
batch(Table, Path, Group, Actions) ->
    Children = supervisor:which_children(Group),
    ok = sys:suspend(Group),
    {Waiting, _} = lists:mapfoldl(
        fun(Action, Dead) -> act(Table, Path, Group, Children, Action, Dead) end, [], Actions),
    ok = sys:resume(Group),
    [receive {answer, Caller, Answer} -> Answer end || Caller <- Waiting, Caller =/= none].

act(_, _, Group, Children, {crash, Name, Reason}, Dead) ->
    case lists:keyfind(Name, 1, Children) of
        {Name, Pid, worker, _} when is_pid(Pid) ->
            case lists:member(Name, Dead) of
                true -> {none, Dead};
                false ->
                    in_mailbox(Group, fun() -> Pid ! {crash, Reason} end),
                    {none, [Name | Dead]}
            end;
        _ -> {none, Dead}
    end;
act(Table, Path, Group, _, Action, Dead) ->
    Self = self(),
    Call = fun() -> Self ! {answer, self(), answer(catch call(Table, Path, Group, Action))} end,
    {in_mailbox(Group, fun() -> spawn(Call) end), Dead}.

in_mailbox(Group, Send) ->
    {message_queue_len, Before} = process_info(Group, message_queue_len),
    Result = Send(),
    wait_until(fun() -> process_info(Group, message_queue_len) =:= {message_queue_len, Before + 1} end),
    Result.

call(Table, Path, Group, {start, Child}) -> supervisor:start_child(Group, child_spec(Table, Path, Child));
call(_, _, Group, {terminate, Name}) -> supervisor:terminate_child(Group, Name);
call(_, _, Group, {restart, Name}) -> supervisor:restart_child(Group, Name);
call(_, _, Group, {delete, Name}) -> supervisor:delete_child(Group, Name).

answer(ok) -> ok;
answer({ok, _}) -> ok;
answer({error, {already_started, _}}) -> already_started;
answer({error, Known}) when Known =:= already_present; Known =:= not_found; Known =:= running; Known =:= restarting ->
    Known;
answer({error, {bad_combination, _}}) -> bad_spec;
answer({error, _}) -> failed;
answer({'EXIT', _}) -> gone.

%% The tree, once nothing moves any more

settled(Root) ->
    case Root =/= none andalso is_process_alive(Root) of
        false -> "over";
        true ->
            case catch ["(", lists:join(" ", picture(Root)), ")"] of
                {'EXIT', _} -> again(Root);
                unsettled -> again(Root);
                Text -> Text
            end
    end.

again(Root) ->
    timer:sleep(1),
    settled(Root).

picture(Group) ->
    [picture_of(Child) || Child <- lists:reverse(supervisor:which_children(Group))].

picture_of({_, restarting, _, _}) -> throw(unsettled);
picture_of({Name, undefined, _, _}) -> [atom_to_list(Name), ":down"];
picture_of({Name, Pid, Type, _}) ->
    is_process_alive(Pid) orelse throw(unsettled),
    case Type of
        worker -> [atom_to_list(Name), ":up"];
        supervisor -> [atom_to_list(Name), "(", lists:join(" ", picture(Pid)), ")"]
    end.

find(none, _) -> none;
find(Group, []) -> case is_process_alive(Group) of true -> Group; false -> none end;
find(Group, [Name | Rest]) ->
    case catch lists:keyfind(Name, 1, supervisor:which_children(Group)) of
        {Name, Pid, supervisor, _} when is_pid(Pid) -> find(Pid, Rest);
        _ -> none
    end.

wait_until(Condition) ->
    case Condition() of
        true -> ok;
        false -> erlang:yield(), wait_until(Condition)
    end.

%% Supervisors and workers

start_group(Table, Path, {Strategy, Intensity, Period, AutoShutdown, Children}) ->
    Flags = #{strategy => Strategy, intensity => Intensity, period => Period, auto_shutdown => AutoShutdown},
    supervisor:start_link(?MODULE, {Flags, [child_spec(Table, Path, Child) || Child <- Children]}).

init(Specification) -> {ok, Specification}.

child_spec(Table, Path, {worker, Name, Restart, Significant, Manner}) ->
    Shutdown = case Manner of obedient -> 5000; stubborn -> 100; brutal -> brutal_kill end,
    #{id => Name, restart => Restart, significant => Significant, type => worker, shutdown => Shutdown,
      start => {?MODULE, start_worker, [Table, Path ++ [Name], Manner]}};
child_spec(Table, Path, {group, Name, Restart, Significant, Group}) ->
    #{id => Name, restart => Restart, significant => Significant, type => supervisor, shutdown => infinity,
      start => {?MODULE, start_group, [Table, Path ++ [Name], Group]}}.

start_worker(Table, Path, Manner) ->
    case ets:lookup(Table, {fail, Path}) of
        [{Key, Count}] when Count > 0 ->
            ets:insert(Table, {Key, Count - 1}),
            note(Table, "!", Path),
            {error, boom};
        _ ->
            Starter = self(),
            Pid = spawn_link(fun() ->
                process_flag(trap_exit, true),
                %% a stubborn one must note that it was asked before its time is over, however busy the machine is
                process_flag(priority, high),
                Starter ! {self(), listens},
                work(Table, Path, Manner)
            end),
            receive {Pid, listens} -> ok end,
            note(Table, "+", Path),
            {ok, Pid}
    end.

work(Table, Path, Manner) ->
    receive
        {crash, Reason} -> exit(Reason);
        {'EXIT', _, shutdown} ->
            note(Table, "-", Path),
            case Manner of
                stubborn -> work(Table, Path, Manner);
                _ -> exit(shutdown)
            end
    end.

note(Table, Sign, Path) ->
    Number = ets:update_counter(Table, count, 1),
    ets:insert(Table, {Number, [Sign, lists:join("/", [atom_to_list(Name) || Name <- Path])]}).

line(Id, Number, Answers, Table, Tree) ->
    Numbers = lists:sort(ets:select(Table, [{{'$1', '_'}, [{is_integer, '$1'}], ['$1']}])),
    Notes = [Note || Key <- Numbers, {_, Note} <- ets:take(Table, Key)],
    io_lib:format("~p ~p [~s] [~s] ~s~n", [
        Id, Number, lists:join(" ", [atom_to_list(Answer) || Answer <- Answers]), lists:join(" ", Notes), Tree]).
