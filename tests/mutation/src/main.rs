//! Rewrites Rust sources so that each of many small changes can be switched on at run time: all of them are compiled once.
//!
//! ```text
//! mutate ROOT OUT SKIPPED FILE..
//!   a < b     becomes  (if crate::mutation_switch::on(7) {(a <= b)} else if ..::on(8) {(a >= b)} else {(a < b)})
//!   f(x);     becomes  if !crate::mutation_switch::on(9) {f(x);}
//!   fn g() {  becomes  fn g() {if crate::mutation_switch::on(10) {return Default::default();}
//! ```
//!
//! It reads each FILE below ROOT and writes it below OUT. SKIPPED names a file with the ids of the changes to be left out, because they
//! do not compile. What was made goes to the standard output, one JSON object a line. Text is only inserted, and never a new line, so
//! that line numbers stay as they are. The changed form in a branch is made of the original text: no other change is on when it runs.
//!
//! Left alone: tests, constants, patterns, types, `Debug` and `Display`, and all macros but `matches!` and `tokio::select!`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::Path;

use proc_macro2::Span;
use quote::ToTokens;
use serde_json::json;
use syn::parse::{Parse, ParseStream};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{BinOp, Expr, Lit, ReturnType, Stmt, Type, UnOp};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, out, skipped, files @ ..] = arguments.as_slice() else {
        eprintln!("usage: mutate ROOT OUT SKIPPED FILE..");
        std::process::exit(2);
    };
    let skipped: BTreeSet<u32> = match fs::read_to_string(skipped) {
        Ok(text) => text.split_whitespace().map(|id| id.parse().expect("SKIPPED holds numbers")).collect(),
        Err(_) => BTreeSet::new(),
    };
    let mut next = 1;
    for file in files {
        let text = fs::read_to_string(Path::new(root).join(file)).unwrap_or_else(|why| panic!("{file}: {why}"));
        let parsed = syn::parse_file(&text).unwrap_or_else(|why| panic!("{file}: {why}"));
        let mut finder = Finder::default();
        finder.visit_file(&parsed);
        let rewritten = rewrite(file, &text, finder.sites, &mut next, &skipped);
        let path = Path::new(out).join(file);
        // What is right already is left alone, so that cargo compiles only what has changed.
        if fs::read_to_string(&path).ok().as_deref() != Some(&rewritten) {
            fs::create_dir_all(path.parent().expect("a file has a folder")).expect("a folder can be made");
            fs::write(&path, rewritten).expect("the file can be written");
        }
    }
}

/// How a change is put into the text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shape {
    /// Around a statement, which is left out.
    Statement,
    /// Around an expression.
    Expression,
    /// Behind the opening brace of a function.
    Body,
    /// Behind a condition with `let`, which then fails.
    LetChain,
}

/// A place in the text, and what can be there instead.
#[derive(Default)]
struct Site {
    function: String,
    line: usize,
    /// What is changed, the original text, and the changed text.
    variants: Vec<(&'static str, String, String)>,
}

type Sites = BTreeMap<(usize, usize, Shape), Site>;

/// Finds the sites of one file.
#[derive(Default)]
struct Finder {
    sites: Sites,
    path: Vec<String>,
}

impl Finder {
    fn add(&mut self, span: Span, range: Range<usize>, shape: Shape, what: &'static str, from: String, to: String) {
        let (function, line) = (self.path.join("::"), span.start().line);
        let site = self.sites.entry((range.start, range.end, shape)).or_default();
        (site.function, site.line) = (function, line);
        if !site.variants.iter().any(|(_, _, other)| *other == to) {
            site.variants.push((what, from, to));
        }
    }

    fn replace(&mut self, expr: &Expr, what: &'static str, to: String) {
        let span = expr.span();
        self.add(span, span.byte_range(), Shape::Expression, what, text(expr), to);
    }

    /// An expression of type bool that is no comparison: those have their own changes.
    fn negate(&mut self, expr: &Expr, what: &'static str) {
        match expr {
            Expr::Paren(inner) => self.negate(&inner.expr, what),
            Expr::Binary(_) | Expr::Unary(_) | Expr::Let(_) | Expr::Lit(_) | Expr::Block(_) => {}
            Expr::Macro(inner) if !inner.mac.path.is_ident("matches") => {}
            other => self.replace(other, what, format!("!({})", text(other))),
        }
    }

    fn condition(&mut self, condition: &Expr) {
        if has_let(condition) {
            let span = condition.span();
            let end = span.byte_range().end;
            self.add(span, end..end, Shape::LetChain, "never taken", text(condition), "false".into());
        } else {
            self.negate(condition, "condition negated");
        }
    }

    fn body(&mut self, signature: &syn::Signature, block: &syn::Block) {
        if signature.constness.is_some() {
            return;
        }
        self.path.push(signature.ident.to_string());
        let open = block.brace_token.span.open();
        let end = open.byte_range().end;
        let whole = block.span().byte_range();
        if !block.stmts.is_empty() && whole.len() > 2 {
            for value in defaults(&signature.output) {
                let to = format!("return {value}");
                self.add(signature.ident.span(), end..end, Shape::Body, "returns at once", String::new(), to);
            }
        }
        self.visit_block(block);
        self.path.pop();
    }
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Trait(item) => &item.attrs,
            _ => return,
        };
        if !of_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if let Some((_, path, _)) = &item.trait_ {
            let name = path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default();
            if ["Debug", "Display"].contains(&name.as_str()) {
                return;
            }
        }
        let name = match &*item.self_ty {
            Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default(),
            other => text(other),
        };
        self.path.push(name);
        for item in &item.items {
            if let syn::ImplItem::Fn(function) = item
                && !of_tests(&function.attrs)
            {
                self.body(&function.sig, &function.block);
            }
        }
        self.path.pop();
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.path.push(item.ident.to_string());
        for item in &item.items {
            if let syn::TraitItem::Fn(function) = item
                && let Some(block) = &function.default
            {
                self.body(&function.sig, block);
            }
        }
        self.path.pop();
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.body(&item.sig, &item.block);
    }

    fn visit_pat(&mut self, _: &'ast syn::Pat) {}

    fn visit_type(&mut self, _: &'ast Type) {}

    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}

    fn visit_generic_argument(&mut self, _: &'ast syn::GenericArgument) {}

    fn visit_stmt(&mut self, stmt: &'ast Stmt) {
        if let Stmt::Expr(expr, Some(_)) = stmt
            && can_be_left_out(expr)
        {
            let span = stmt.span();
            self.add(span, span.byte_range(), Shape::Statement, "left out", text(stmt), String::new());
        }
        visit::visit_stmt(self, stmt);
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if let Some((_, guard)) = &arm.guard
            && !has_let(guard)
        {
            self.replace(guard, "guard", "true".into());
            self.replace(guard, "guard", "false".into());
        }
        visit::visit_arm(self, arm);
    }

    fn visit_expr(&mut self, expr: &'ast Expr) {
        match expr {
            Expr::Binary(binary) if !has_let(expr) => {
                for (what, op) in other_operators(&binary.op) {
                    let to = format!("{} {op} {}", text(&binary.left), text(&binary.right));
                    self.replace(expr, what, to);
                }
            }
            Expr::Unary(unary) if matches!(unary.op, UnOp::Not(_)) => {
                self.replace(expr, "`!` removed", text(&unary.expr));
            }
            Expr::If(branch) => self.condition(&branch.cond),
            Expr::While(branch) => self.condition(&branch.cond),
            Expr::Lit(lit) => match &lit.lit {
                Lit::Bool(value) => self.replace(expr, "literal", (!value.value).to_string()),
                Lit::Int(value) => {
                    if let Ok(number) = value.base10_parse::<u128>() {
                        let other = if number == 1 { 0 } else { number + 1 };
                        self.replace(expr, "literal", format!("{other}{}", value.suffix()));
                    }
                }
                _ => {}
            },
            Expr::Range(range) => {
                if let Some(end) = &range.end {
                    let change = match range.limits {
                        syn::RangeLimits::HalfOpen(_) => format!("({}) + 1", text(end)),
                        syn::RangeLimits::Closed(_) => format!("({}) - 1", text(end)),
                    };
                    if !matches!(**end, Expr::Lit(_)) {
                        self.replace(end, "end of a range", change);
                    }
                }
            }
            Expr::MethodCall(call) => {
                let name = call.method.to_string();
                if let Some((_, other)) = SWAPS.iter().find(|(one, _)| *one == name) {
                    let mut swapped = call.clone();
                    swapped.method = syn::Ident::new(other, call.method.span());
                    self.replace(expr, "another method", text(&Expr::MethodCall(swapped)));
                }
                if QUESTIONS.contains(&name.as_str()) {
                    self.negate(expr, "negated");
                }
                if PREDICATES.contains(&name.as_str()) {
                    for argument in &call.args {
                        if let Expr::Closure(closure) = argument {
                            self.negate(&closure.body, "predicate negated");
                        }
                    }
                }
            }
            Expr::Macro(inner) => {
                if inner.mac.path.segments.last().is_some_and(|segment| segment.ident == "select") {
                    self.select(&inner.mac);
                }
            }
            _ => {}
        }
        match expr {
            // The length of an array is a constant.
            Expr::Repeat(repeat) => self.visit_expr(&repeat.expr),
            Expr::Const(_) => {}
            _ => visit::visit_expr(self, expr),
        }
    }

    fn visit_stmt_macro(&mut self, stmt: &'ast syn::StmtMacro) {
        if stmt.mac.path.segments.last().is_some_and(|segment| segment.ident == "select") {
            self.select(&stmt.mac);
        }
    }
}

impl Finder {
    fn select(&mut self, mac: &syn::Macro) {
        let Ok(Select(parts)) = mac.parse_body() else { panic!("a select! that cannot be parsed") };
        for (condition, part) in &parts {
            if *condition {
                self.negate(part, "condition negated");
            }
            self.visit_expr(part);
        }
    }
}

/// The expressions of a `tokio::select!`, and whether each is a condition.
struct Select(Vec<(bool, Expr)>);

impl Parse for Select {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut parts = Vec::new();
        while !input.is_empty() {
            if input.peek(syn::Ident) && input.peek2(syn::Token![;]) {
                input.parse::<syn::Ident>()?;
                input.parse::<syn::Token![;]>()?;
                continue;
            }
            if input.peek(syn::Token![else]) {
                input.parse::<syn::Token![else]>()?;
            } else {
                syn::Pat::parse_multi(input)?;
                input.parse::<syn::Token![=]>()?;
                parts.push((false, input.parse()?));
                if input.peek(syn::Token![,]) {
                    input.parse::<syn::Token![,]>()?;
                    input.parse::<syn::Token![if]>()?;
                    parts.push((true, input.parse()?));
                }
            }
            input.parse::<syn::Token![=>]>()?;
            parts.push((false, Expr::parse_with_earlier_boundary_rule(input)?));
            if input.peek(syn::Token![,]) {
                input.parse::<syn::Token![,]>()?;
            }
        }
        Ok(Self(parts))
    }
}

/// Methods that can stand for each other, as far as types go.
const SWAPS: &[(&str, &str)] = &[
    ("min", "max"),
    ("max", "min"),
    ("any", "all"),
    ("all", "any"),
    ("is_some_and", "is_none_or"),
    ("is_none_or", "is_some_and"),
    ("saturating_sub", "saturating_add"),
    ("saturating_add", "saturating_sub"),
    ("wrapping_add", "wrapping_sub"),
    ("wrapping_sub", "wrapping_add"),
    ("checked_add", "checked_sub"),
    ("checked_sub", "checked_add"),
    ("first", "last"),
    ("last", "first"),
    ("push_back", "push_front"),
    ("push_front", "push_back"),
    ("pop_front", "pop_back"),
    ("pop_back", "pop_front"),
    ("or", "and"),
    ("and", "or"),
    ("without", "and"),
    ("or_insert", "insert"),
    ("take_while", "filter"),
    ("skip_while", "filter"),
    ("min_by_key", "max_by_key"),
    ("max_by_key", "min_by_key"),
];

/// Methods that answer a question; their answer is negated wherever they stand.
const QUESTIONS: &[&str] = &[
    "contains",
    "contains_key",
    "is_empty",
    "is_zero",
    "is_some",
    "is_none",
    "is_ok",
    "is_err",
    "starts_with",
    "is_multiple_of",
    "any",
    "all",
    "is_some_and",
    "is_none_or",
];

/// Methods that take a question.
const PREDICATES: &[&str] =
    &["filter", "find", "position", "retain", "take_while", "skip_while", "map_while", "partition"];

fn other_operators(op: &BinOp) -> Vec<(&'static str, &'static str)> {
    let (what, others): (_, &[&'static str]) = match op {
        BinOp::Lt(_) => ("comparison", &["<=", ">="]),
        BinOp::Le(_) => ("comparison", &["<", ">"]),
        BinOp::Gt(_) => ("comparison", &[">=", "<="]),
        BinOp::Ge(_) => ("comparison", &[">", "<"]),
        BinOp::Eq(_) => ("comparison", &["!="]),
        BinOp::Ne(_) => ("comparison", &["=="]),
        BinOp::And(_) => ("logic", &["||"]),
        BinOp::Or(_) => ("logic", &["&&"]),
        BinOp::Add(_) => ("arithmetic", &["-"]),
        BinOp::Sub(_) => ("arithmetic", &["+"]),
        BinOp::Mul(_) => ("arithmetic", &["/"]),
        BinOp::Div(_) => ("arithmetic", &["*"]),
        BinOp::Rem(_) => ("arithmetic", &["/"]),
        BinOp::BitAnd(_) => ("arithmetic", &["|"]),
        BinOp::BitOr(_) => ("arithmetic", &["&"]),
        BinOp::BitXor(_) => ("arithmetic", &["|"]),
        BinOp::Shl(_) => ("arithmetic", &[">>"]),
        BinOp::Shr(_) => ("arithmetic", &["<<"]),
        BinOp::AddAssign(_) => ("arithmetic", &["-="]),
        BinOp::SubAssign(_) => ("arithmetic", &["+="]),
        BinOp::BitOrAssign(_) => ("arithmetic", &["&="]),
        BinOp::BitAndAssign(_) => ("arithmetic", &["|="]),
        _ => ("", &[]),
    };
    others.iter().map(|other| (what, *other)).collect()
}

/// What a function of this type might return without having looked at anything.
fn defaults(output: &ReturnType) -> Vec<String> {
    let ReturnType::Type(_, output) = output else { return vec!["()".into()] };
    values(output)
}

fn values(of: &Type) -> Vec<String> {
    let one = |value: &str| vec![value.to_owned()];
    let Type::Path(path) = of else {
        return match of {
            Type::Tuple(tuple) if tuple.elems.is_empty() => one("()"),
            Type::Tuple(_) => one("Default::default()"),
            Type::Reference(_) | Type::Slice(_) | Type::Array(_) => one("Default::default()"),
            _ => Vec::new(),
        };
    };
    let Some(last) = path.path.segments.last() else { return Vec::new() };
    let inner = || match &last.arguments {
        syn::PathArguments::AngleBracketed(arguments) => arguments.args.iter().find_map(|argument| match argument {
            syn::GenericArgument::Type(of) => Some(values(of)),
            _ => None,
        }),
        _ => None,
    };
    match last.ident.to_string().as_str() {
        "bool" => vec!["true".into(), "false".into()],
        "usize" | "u8" | "u16" | "u32" | "u64" | "u128" | "i32" | "i64" => vec!["0".into(), "1".into()],
        "Option" => one("None"),
        "Result" => inner().unwrap_or_default().into_iter().map(|value| format!("Ok({value})")).collect(),
        "Self" => one("Self::default()"),
        _ => one("Default::default()"),
    }
}

/// Whether a statement may be missing without anything else to be said of it; only calls and assignments.
fn can_be_left_out(expr: &Expr) -> bool {
    match expr {
        Expr::MethodCall(_) | Expr::Call(_) | Expr::Assign(_) => true,
        Expr::Await(inner) => can_be_left_out(&inner.base),
        Expr::Try(inner) => can_be_left_out(&inner.expr),
        Expr::Binary(binary) => matches!(
            binary.op,
            BinOp::AddAssign(_) | BinOp::SubAssign(_) | BinOp::BitOrAssign(_) | BinOp::BitAndAssign(_)
        ),
        _ => false,
    }
}

/// Whether a condition has a `let` of its own.
fn has_let(condition: &Expr) -> bool {
    match condition {
        Expr::Let(_) => true,
        Expr::Binary(binary) if matches!(binary.op, BinOp::And(_)) => has_let(&binary.left) || has_let(&binary.right),
        _ => false,
    }
}

fn of_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let words = text(attribute);
        attribute.path().is_ident("test") || attribute.path().is_ident("cfg") && words.contains("test")
    })
}

fn text(of: &impl ToTokens) -> String {
    of.to_token_stream().to_string().replace('\n', " ")
}

/// Puts the changes into the text, and tells of each.
fn rewrite(file: &str, original: &str, sites: Sites, next: &mut u32, skipped: &BTreeSet<u32>) -> String {
    // What is to be inserted where: at one place first what closes, the inner ones before the outer ones; then what opens, the outer
    // ones before the inner ones.
    let mut insertions: Vec<((usize, u8, i64), String)> = Vec::new();
    for ((start, end, shape), site) in sites {
        let length = (end - start) as i64;
        let mut branches = String::new();
        for (what, from, to) in site.variants {
            let id = *next;
            *next += 1;
            let about = json!({
                "id": id, "file": file, "line": site.line, "function": site.function, "what": what, "from": from, "to": to,
                "skipped": skipped.contains(&id),
            });
            println!("{about}");
            if skipped.contains(&id) {
                continue;
            }
            match shape {
                Shape::Expression => {
                    let or = if branches.is_empty() { "(" } else { " else " };
                    branches += &format!("{or}if crate::mutation_switch::on({id}) {{({to})}}");
                }
                Shape::Statement => branches = format!("if !crate::mutation_switch::on({id}) {{"),
                Shape::Body => branches += &format!("if crate::mutation_switch::on({id}) {{{to};}}"),
                Shape::LetChain => branches = format!(" && !crate::mutation_switch::on({id})"),
            }
        }
        if branches.is_empty() {
            continue;
        }
        match shape {
            Shape::Expression => {
                insertions.push(((start, 2, -length * 2), branches + " else {("));
                insertions.push(((end, 0, length * 2), ")})".into()));
            }
            Shape::Statement => {
                insertions.push(((start, 2, -length * 2 - 1), branches));
                insertions.push(((end, 0, length * 2 + 1), "}".into()));
            }
            Shape::Body | Shape::LetChain => insertions.push(((start, 1, 0), branches)),
        }
    }
    insertions.sort_by(|one, other| one.0.cmp(&other.0));
    let (mut rewritten, mut at) = (String::with_capacity(original.len() * 3), 0);
    for ((place, _, _), inserted) in insertions {
        rewritten.push_str(&original[at..place]);
        rewritten.push_str(&inserted);
        at = place;
    }
    rewritten.push_str(&original[at..]);
    rewritten
}
