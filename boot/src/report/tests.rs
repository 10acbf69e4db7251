use super::*;

const TEXT: &str = "\
#boot sweep
@sweep plot=size series=idle x=6 value=15211
@sweep plot=size series=idle x=6144 value=219976
@sweep plot=attach series=idle x=6 value=13171
@sweep plot=bytes series=metadata_idle x=6 value=0
@sweep plot=extents series=mappings x=16 value=4672.37
@sweep plot=batch series=array_4k x=512 value=21.7
@sweep plot=interrupts series=by_range x=4 value=77
@sweep ended=1
#boot cpus
@sweep plot=interrupts series=by_range x=8 value=7
@sweep plot=cpus series=by_range x=8 value=40000
@sweep plot=size series=idle x=1 value=1
@sweep ended=1
#boot bench
@bench name=pin_4k_called unit=instructions value=118 bound=80 kind=at_most met=0
@bench figures=1 missed=1 ended=1
";

fn drawn(text: &str) -> String {
    draw(&Records::parse(text).unwrap(), &Peers::find().unwrap()).unwrap()
}

#[test]
fn the_page_needs_no_other_file() {
    let page = drawn(TEXT);
    // The only address is the name of SVG's own vocabulary, which nobody loads.
    let without = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for word in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link", "<img"] {
        assert!(!without.contains(word), "{word}");
    }
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
}

#[test]
fn each_plot_has_its_command_and_what_it_means() {
    let page = drawn(TEXT);
    let sections: Vec<_> = page.split("<section>").skip(1).collect();
    assert_eq!(sections.len(), 9);
    for section in sections {
        assert!(
            section.contains("<svg") && section.contains("Made by <code>./run-qemu.sh ")
                || section.contains("<code>for n in"),
            "{section}"
        );
        let meaning = section.rsplit_once("<p>").expect("a paragraph").1;
        assert!(meaning.matches(['.', ';']).count() >= 2, "{meaning}");
    }
}

/// Each boot gives the plots that it was made for.
#[test]
fn a_boot_with_other_cpus_gives_interrupts_and_no_other_gives_them() {
    let records = Records::parse(TEXT).unwrap();
    assert_eq!(records.points.of("interrupts")["by_range"].keys().collect::<Vec<_>>(), [&8]);
    assert_eq!(records.points.of("size")["idle"].keys().collect::<Vec<_>>(), [&6, &6144]);
}

#[test]
fn a_plot_without_points_says_so() {
    let page = drawn(&TEXT.replace("@sweep plot=extents series=mappings x=16 value=4672.37\n", ""));
    assert_eq!(page.matches("Not drawn: there is no point.").count(), 1);
}

#[test]
fn records_that_cannot_be_drawn_are_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("records");
    for (text, word) in [
        ("", "no records of a report"),
        ("@sweep plot=size series=idle x=6 value=15211\n", "no records of a report"),
        ("#boot sweep\n", "no record of a sweep"),
        ("#boot dance\n", "no kind of boot"),
        (&TEXT.replace("#boot bench", "#boot cpus"), "no record of a sweep"),
        (TEXT.split("#boot bench").next().unwrap(), "no figures of bench"),
        (&TEXT.replace("value=118", "value=lots"), "makes no sense"),
        (TEXT.rsplit_once("@bench figures").unwrap().0, "cut off"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = format!("{:#}", read_records(&path).expect_err("it cannot be drawn"));
        assert!(error.contains(word) && error.contains("records") && !error.contains('\n'), "{text:?}: {error}");
    }
    assert!(read_records(&directory.path().join("absent")).is_err());
}

#[test]
fn text_means_itself() {
    assert_eq!(escaped("a<b> & \"c\""), "a&lt;b&gt; &amp; &quot;c&quot;");
}
