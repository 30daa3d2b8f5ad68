//! Manual pages describe each command and option, with its value, its default and its possible
//! values, in the order of the help; and no others.

use clap::{Arg, Command};

use crate::{programs, read};

/// An entry of a list of a page, with what is said of it and the lists that are in it.
#[derive(Debug, Default)]
struct Item {
    tag: String,
    text: String,
    items: Vec<Item>,
}

impl Item {
    /// All that it says, tags of inner entries included.
    fn everything(&self) -> String {
        let inner = self.items.iter().map(|item| format!("{}\n{}", item.tag, item.everything()));
        format!("{}\n{}", self.text, inner.collect::<String>())
    }
}

/// The lines of a section, or of the whole rest of the page when it is the last.
fn section<'a>(page: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = page.split_once(&format!("\n.Sh {name}\n"))?;
    Some(rest.split("\n.Sh ").next().unwrap())
}

/// The entries of all lists in these lines, from the innermost list outwards.
fn items(lines: &mut dyn Iterator<Item = &str>) -> Vec<Item> {
    let mut found: Vec<Item> = Vec::new();
    while let Some(line) = lines.next() {
        if line.starts_with(".El") {
            break;
        } else if line.starts_with(".Bl") {
            let inner = items(lines);
            match found.last_mut() {
                Some(item) => item.items.extend(inner),
                None => found.extend(inner),
            }
        } else if let Some(tag) = line.strip_prefix(".It ") {
            found.push(Item { tag: tag.to_owned(), ..Item::default() });
        } else if let Some(item) = found.last_mut() {
            item.text.push_str(line);
            item.text.push('\n');
        }
    }
    found
}

/// How a page announces an option: `Fl c , Fl Fl connections Ar N`.
fn tag(option: &Arg) -> String {
    let mut words = Vec::new();
    words.extend(option.get_short().map(|short| format!("Fl {short} ,")));
    words.push(format!("Fl Fl {}", option.get_long().expect("every option has a long form")));
    if option.get_action().takes_values() {
        words.extend(option.get_value_names().unwrap().iter().map(|name| format!("Ar {name}")));
    }
    words.join(" ")
}

/// The same of a command: `Cm diff Ar A.json B.json`.
fn tag_of_command(command: &Command) -> String {
    let names =
        command.get_positionals().map(|argument| argument.get_value_names().unwrap()[0].as_str());
    let names: Vec<&str> = names.collect();
    let gap = if names.is_empty() { "" } else { " Ar " };
    format!("Cm {}{gap}{}", command.get_name(), names.join(" "))
}

/// Options of `command` that a page has to describe, in the order of the help.
fn options(command: &Command) -> Vec<&Arg> {
    command.get_arguments().filter(|it| !it.is_positional() && !it.is_hide_set()).collect()
}

/// What is wrong with the entries that should describe these options.
fn compare(page: &str, options: &[&Arg], items: &[&Item]) -> Vec<String> {
    let wanted: Vec<String> = options.iter().map(|option| tag(option)).collect();
    let found: Vec<&str> = items.iter().map(|item| item.tag.as_str()).collect();
    if wanted != found {
        return vec![format!("{page} describes {found:#?}, but there are {wanted:#?}")];
    }
    let mut faults = Vec::new();
    for (option, item) in options.iter().zip(items) {
        let text = item.everything();
        let mut demand = |is_there: bool, what: String| {
            if !is_there {
                faults.push(format!("{page}: {} does not say {what}", item.tag));
            }
        };
        if !option.get_action().takes_values() {
            continue;
        }
        for value in option.get_possible_values() {
            let word = value.get_name();
            let named = text.lines().any(|line| {
                let words: Vec<&str> = line.trim_start_matches('.').split(' ').collect();
                words[0] == "Cm" && words[1] == word
            });
            demand(named, format!("what {word} is"));
        }
        for default in option.get_default_values() {
            let word = default.to_str().unwrap();
            let is_marked =
                |it: &Item| it.tag == format!("Cm {word}") && it.text.contains("The default.");
            let is_told =
                text.contains(&format!("Default: {word}.")) || item.items.iter().any(is_marked);
            demand(is_told, format!("that {word} is the default"));
        }
    }
    faults
}

/// Missing and superfluous entries of a page.
fn faults(command: &Command, name: &str, page: &str) -> Vec<String> {
    let mut command = command.clone();
    command.build();
    let own = options(&command);
    let list = items(&mut section(page, "OPTIONS").unwrap().lines());
    let mut faults = compare(name, &own, &list.iter().collect::<Vec<_>>());

    let list = section(page, "COMMANDS").map(|text| items(&mut text.lines())).unwrap_or_default();
    let verbs: Vec<&Command> = command.get_subcommands().collect();
    let wanted: Vec<String> = verbs.iter().map(|verb| tag_of_command(verb)).collect();
    let found: Vec<&str> = list.iter().map(|item| item.tag.as_str()).collect();
    if wanted != found {
        faults.push(format!("{name} describes {found:?}, but there are {wanted:?}"));
        return faults;
    }
    let synopsis = section(page, "SYNOPSIS").unwrap();
    for (verb, item) in verbs.iter().zip(&list) {
        if !synopsis.split(['\n', ' ']).any(|word| word == verb.get_name()) {
            faults.push(format!("{name}: the synopsis does not name {}", verb.get_name()));
        }
        // Options that come before the command as well are described once.
        let further: Vec<&Arg> = options(verb)
            .into_iter()
            .filter(|option| own.iter().all(|it| it.get_long() != option.get_long()))
            .collect();
        let described: Vec<&Item> =
            item.items.iter().filter(|item| item.tag.starts_with("Fl ")).collect();
        faults.extend(compare(name, &further, &described));
    }
    faults
}

#[test]
fn the_manual_knows_every_command_and_option_and_no_other() {
    for (command, page) in programs() {
        let faults = faults(&command, page, &read(page));
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}

#[test]
fn every_fault_of_a_page_is_found() {
    let (command, name) = &programs()[1];
    let page = read(name);
    for (from, to) in [
        (".It Fl Fl source Ar ADDRESS\n", ".It Fl Fl from Ar ADDRESS\n"),
        (".It Fl Fl source Ar ADDRESS\n", ".It Fl Fl source Ar IP\n"),
        (".It Fl Fl source Ar ADDRESS\n", ""),
        ("Default: 10s.", "Default: 20s."),
        (".It Cm churn\n", ".It Cm chum\n"),
        ("The default.", ""),
        (".It Cm diff Ar A.json B.json\n", ".It Cm compare Ar A.json B.json\n"),
        (".It Fl Fl threshold Ar PERCENT\n", ".It Fl Fl limit Ar PERCENT\n"),
        (".Cm diff\n", "\n"),
    ] {
        let changed = page.replacen(from, to, 1);
        assert_ne!(changed, page, "{from:?} is not in the page");
        assert!(!faults(command, name, &changed).is_empty(), "{from:?} to {to:?} is not found");
    }
}
