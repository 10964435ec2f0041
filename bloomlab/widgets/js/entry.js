// What anywidget calls: draw the view that `kind` names.
export default {
  render({ model, el }) {
    const shell = new Shell(model, el, TITLE);
    shell.root.dataset.kind = model.get("kind");
    shell.root.shell = shell; // for tests and benchmarks
    try { VIEW(shell); } catch (error) { shell.say(`this view could not be drawn: ${error.message}`); throw error; }
    shell.redraw();
    return () => shell.close();
  },
};
