"""How the page looks; nothing of it is fetched from elsewhere."""

CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto; padding: 8px 20px !important; }
#title { padding: 0; }
#title h1 { font-size: 1.4rem; font-weight: 700; margin: 0; }
#title p { margin: 2px 0 0; }
#refused { color: var(--error-text-color); font-weight: 600; }
#refused:empty { display: none; }
.ratio div, .ratio span { color: var(--body-text-color); }

#results { line-height: 1.35; padding: 0; color: var(--body-text-color); }
#results .top, #results .panels { display: grid; gap: 12px; }
#results .top { grid-template-columns: repeat(2, minmax(150px, 1fr)) minmax(270px, auto); }
#results .panels { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
#results .panels figure { max-width: 260px; }
#results figure { margin: 0; min-width: 0; }
#results img { display: block; width: 100%; max-height: 300px; object-fit: contain;
  margin: 0; border-radius: 4px; }
#results img.small { image-rendering: pixelated; }
#results figcaption { margin-top: 4px; font-size: 0.8rem; text-align: center; }
#results .top figcaption { font-size: 0.95rem; font-weight: 600; }
#results h2 { margin: 12px 0 6px; font-size: 1rem; font-weight: 600; }

#results table { align-self: start; width: 100%; margin: 0; border-collapse: collapse;
  font-size: 0.85rem; }
#results table, #results tr, #results th, #results td { border: none; }
#results tr { border-bottom: 1px solid var(--border-color-primary); }
#results th, #results td { padding: 5px 4px; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
#results th[scope=row] { padding-left: 0; text-align: left; font-weight: 400; }
@media (max-width: 1000px) {
  #results .top { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  #results table { grid-column: 1 / -1; }
}

#results .legend, #results .legend ul { display: flex; flex-wrap: wrap; gap: 2px 12px;
  margin: 0; padding: 0; list-style: none; }
#results .legend { margin-top: 8px; font-size: 0.85rem; }
#results .legend li { margin: 0; }
#results .swatch { display: inline-block; width: 0.9em; height: 0.9em; margin-right: 4px;
  border: 1px solid #888; vertical-align: -0.1em; }
#results .notes { margin: 12px 0 0; padding-left: 1.2em; font-size: 0.8rem; list-style: disc; }
#results .notes li { margin: 2px 0; }

#results .message { margin: 0; padding: 12px 14px; font-size: 1rem;
  border-left: 4px solid var(--border-color-primary); }
#results .error { border-color: var(--error-border-color);
  background: var(--error-background-fill); }
"""
